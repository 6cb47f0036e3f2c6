"""The values of a row: which form they are of, and the texts among them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvera.data.row_files import Row, check_unicode
from polyvera.errors import DataError

A_TEXT, AN_INT, A_NUMBER, A_LIST = "a text", "a whole number", "a number", "a list"


def value_form(value: Any) -> str:
    """Which of the four forms of values it is of."""
    if is_list(value):
        return A_LIST
    return A_NUMBER if isinstance(value, float) else AN_INT if isinstance(value, int) else A_TEXT


def is_list(value: Any) -> bool:
    """Whether it is several values; a text is one."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def says_something(value: Any) -> bool:
    """Whether a value is more than the null or the empty list that fills up a column."""
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def text_in(row: Row, column: str) -> str:
    """The text in a column. Raises DataError where there is none."""
    value = row.get(column)
    if not isinstance(value, str):
        kind = "null" if value is None else f"of type {type(value).__name__}, not a string"
        raise DataError(f"{column} is {kind if column in row else 'missing'}")
    if not value.strip():
        raise DataError(f"{column} is empty")
    check_unicode(value, column)
    return value
