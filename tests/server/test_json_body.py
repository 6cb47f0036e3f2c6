"""A body is counted before it is made."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from polyvera.errors import ServeError
from polyvera.server.json_body import MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, read_body


class Box(BaseModel):
    x: Any


def test_a_body_is_read() -> None:
    assert read_body(b'{"x": [1, {"a": null}]}', Box).x == [1, {"a": None}]


@pytest.mark.parametrize("value", [[[]] * (MAX_CONTAINERS + 1), [{}] * (MAX_CONTAINERS + 1), [1] * (MAX_VALUES + 2)])
def test_one_of_too_many_parts_is_refused(value: Any) -> None:
    with pytest.raises(ServeError, match="too many parts"):
        read_body(json.dumps({"x": value}).encode(), Box)


def test_what_stands_in_a_text_is_no_part() -> None:
    text = '[{,"\\' * MAX_CONTAINERS * 4
    assert read_body(json.dumps({"x": text}).encode(), Box).x == text


@pytest.mark.parametrize(
    ("data", "word", "param"),
    [
        (b"{", "not valid JSON", None),
        (b"\xff", "not valid JSON", None),
        (b'{"x": NaN}', "NaN", None),
        (b'{"x": 1, "x": 2}', "comes twice", "x"),
        (b"[" * 10_000, "nested too deeply", None),
        (b'{"x": "\\ud83d"}', "half a character", "x"),
        (b'{"\\ud83d": 1}', "half a character", None),
        (b'{"x": ' + b"9" * 5000 + b"}", "too many digits", None),
    ],
)
def test_what_is_not_json_is_refused(data: bytes, word: str, param: str | None) -> None:
    with pytest.raises(ServeError, match=word) as refused:
        read_body(data, Box)
    assert refused.value.param == param


@pytest.mark.parametrize(("begin", "again"), [(b'"', b'\\"'), (b'"', b"\\\n"), (b"", b'""'), (b"", b"\\")])
def test_a_text_without_an_end_is_looked_through_once(begin: bytes, again: bytes) -> None:
    with pytest.raises(ServeError, match="nested too deeply"):
        read_body(b"[" * (MAX_DEPTH + 1) + begin + again * 2**19, Box)  # hours where it is looked through anew


def test_brackets_that_close_nothing_are_not_counted() -> None:
    with pytest.raises(ServeError, match="nested too deeply"):
        read_body(b"[" * (MAX_DEPTH + 1) + b"]" * 2**22, Box)
    with pytest.raises(ServeError, match="not valid JSON"):
        read_body(b"[]" * (MAX_DEPTH + 1) + b"]" * 2**22, Box)


def test_another_type_is_the_schemas_own_to_refuse() -> None:
    with pytest.raises(ValidationError):
        read_body(b"[]", Box)


def test_depth_is_bounded_whatever_stands_in_texts() -> None:
    def nested(depth: int) -> bytes:
        return b'{"x": ' + b"[" * (depth - 1) + b'"[[{"' + b"]" * (depth - 1) + b"}"

    read_body(nested(MAX_DEPTH), Box)
    with pytest.raises(ServeError, match=f"at most {MAX_DEPTH}"):
        read_body(nested(MAX_DEPTH + 1), Box)
