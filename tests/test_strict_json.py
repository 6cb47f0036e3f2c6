"""JSON that means two things, or nothing, is refused."""

import json

import pytest

from polyvera.strict_json import HalfCharacterError, JsonError, RepeatedKeyError, loads, raw_value


@pytest.mark.parametrize("value", [{}, [], {"a": [1, 2.5, None, True, "é"]}, "x", -3])
def test_json_is_read(value: object) -> None:
    assert loads(json.dumps(value)) == value == loads(json.dumps(value).encode())


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "{", "", b"\xff", "[1,]"])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(JsonError):
        loads(text)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"a": 1, "a": 2}}]'])
def test_a_key_that_comes_twice_is_named(text: str) -> None:
    with pytest.raises(RepeatedKeyError, match="'a' comes twice") as refused:
        loads(text)
    assert refused.value.key == "a"


def test_what_is_too_deep_is_refused() -> None:
    with pytest.raises(JsonError, match="nested too deeply"):
        loads("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(("text", "words"), [(b"\xff", "not text in UTF-8"), ("9" * 5000, "too many digits")])
def test_what_is_wrong_is_told_without_words_of_python(text: str | bytes, words: str) -> None:
    with pytest.raises(JsonError, match=words) as refused:
        loads(text)
    assert "codec" not in str(refused.value) and "sys." not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"a": 1, "b": ["\\ud83d"]}', "b"), ('"\\uDE00"', ""), ('{"\\ud83d": 1}', ""), ('["\\ud83d"]', "")],
)
def test_half_a_character_is_refused_by_the_key_that_it_is_in(text: str, key: str) -> None:
    with pytest.raises(HalfCharacterError, match="half a character") as refused:
        loads(text)
    assert refused.value.key == key
    assert loads('"\\ud83d\\ude00"') == "\U0001f600" and loads('"\\\\ud83d"') == "\\ud83d"


def test_a_value_is_read_from_where_it_begins() -> None:
    assert raw_value('x{"a": 1, "a": 2}]', 1) == ({"a": 2}, 17)
    assert raw_value('"\\ud83d" {} "\\ud83d"', 9) == ({}, 11)  # what stands around it is another's
    for text in ("NaN", '"\\ud83d"', "[1"):
        with pytest.raises(JsonError):
            raw_value(text, 0)
