"""Expressions mean what the standard library's do, and none of them stops the process."""

import re
import threading
import time

import pytest

from polyvera.adapter.expression import MAX_CHARS, Expressions
from polyvera.errors import FormatError, TargetError

NAMES = [f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1, 11) for x in "qkv"]
USUAL = [
    r".*\.[qv]_proj",
    r"(.*\.)?(q_proj|layers\.1\..*)$",
    r"model\.layers\.(?!1)\d+\..*",
    r"(?:^|.*?\.)layers\.(\d+)\.",
]
EXPLODING = "(((([a-z_.0-9]{1,50}){1,50}){1,50}){1,50})[!?]", "((((.{1,99}){1,99}){1,99}){1,99})[!?]"


@pytest.mark.parametrize("expression", USUAL)
@pytest.mark.parametrize("how", ["match", "fullmatch"])
def test_they_match_as_the_standard_library_does(expression: str, how: str) -> None:
    given = Expressions(FormatError)
    for name in NAMES:
        found, wanted = getattr(given, how)("key", expression, name), getattr(re, how)(expression, name)
        assert (found is None) == (wanted is None)
        assert found is None or (found.group(), found.groups()) == (wanted.group(), wanted.groups())


@pytest.mark.parametrize("expression", EXPLODING)
def test_one_that_explodes_is_refused_by_its_key_while_others_go_on(expression: str) -> None:
    steps, done = [], threading.Event()

    def others() -> None:
        while not done.wait(0.01):
            steps.append(time.monotonic())

    thread = threading.Thread(target=others)
    thread.start()
    try:
        given = Expressions(TargetError)
        with pytest.raises(TargetError, match="targets="):
            for name in NAMES:
                given.fullmatch("targets", expression, name * 3)
        assert len(steps) > 10, "the matcher leaves the interpreter to others"
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("expression", ["(a", "a" * (MAX_CHARS + 1), "(" * 2000 + ")" * 2000])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(FormatError, match="rank_pattern"):
        Expressions(FormatError).match("rank_pattern", expression, "a")
