"""Values of rows: their forms, and which of them say nothing."""

import numpy as np

from polyvera.data.row_values import says_something, value_form


def test_a_value_is_of_one_form() -> None:
    assert [value_form(v) for v in ("a", 1, 1.0, ["a"], True)] == [
        "a text",
        "a whole number",
        "a number",
        "a list",
        "a whole number",
    ]


def test_nulls_and_empty_lists_say_nothing() -> None:
    assert [says_something(v) for v in (None, [], "", np.array([]), 0, False, "a", [0])] == [False] * 4 + [True] * 4
