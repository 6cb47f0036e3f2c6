"""JSON that means two things, or nothing, is refused."""

import json

import pytest

from polyvera.strict_json import RepeatedKeyError, loads


@pytest.mark.parametrize("value", [{}, [], {"a": [1, 2.5, None, True, "é"]}, "x", -3])
def test_json_is_read(value: object) -> None:
    assert loads(json.dumps(value)) == value == loads(json.dumps(value).encode())


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "{", "", b"\xff", "[1,]"])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"a": 1, "a": 2}}]'])
def test_a_key_that_comes_twice_is_named(text: str) -> None:
    with pytest.raises(RepeatedKeyError, match="'a' comes twice") as refused:
        loads(text)
    assert refused.value.key == "a"


def test_what_is_too_deep_is_refused() -> None:
    with pytest.raises(RecursionError):
        loads("[" * 100_000 + "]" * 100_000)
