"""JSON as it is meant: no key twice in one object, no NaN, no infinity, no half of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half a character may be written so, as may both halves of one


class JsonError(ValueError):
    """What is not JSON, in words for whoever wrote it."""


class RepeatedKeyError(JsonError):
    """A key that comes twice in one object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} comes twice")
        self.key = key


class HalfCharacterError(JsonError):
    """A text with half a character, which is not valid. key: of the object that it is in, '' for none."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key or 'a text'} has half a character in it, and must be valid text")
        self.key = key


def loads(text: str | bytes) -> Any:
    """The value. Raises JsonError for all else, such as RepeatedKeyError."""
    try:
        given = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError:
        raise JsonError("it is not text in UTF-8") from None
    return _read(given, 0, lambda: (_DECODER.decode(given), len(given)))[0]


def raw_value(text: str, begin: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends. Of a key that comes twice the last counts. Raises JsonError."""
    return _read(text, begin, lambda: _LAST.raw_decode(text, begin))


def _read(text: str, begin: int, decode: Callable[[], tuple[Any, int]]) -> tuple[Any, int]:
    """A value and its end, between which it has no half of a character. Raises JsonError."""
    try:
        found, end = decode()
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from None
    except ValueError:  # Python's bound on digits
        raise JsonError("a number in it has too many digits") from None
    if HALF.search(text, begin, end) and not _is_text(found):
        named = found.items() if isinstance(found, dict) else ()
        raise HalfCharacterError(next((key for key, value in named if _is_text(key) and not _is_text(value)), ""))
    return found, end


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(key)
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is not a JSON number")


_LAST = json.JSONDecoder(parse_constant=_constant)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
