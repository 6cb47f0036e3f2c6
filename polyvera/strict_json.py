"""JSON as it is meant: no key twice in one object, no NaN, no infinity."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class RepeatedKeyError(ValueError):
    """A key that comes twice in one object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} comes twice")
        self.key = key


def loads(text: str | bytes) -> Any:
    """The value. Raises ValueError for all else, RepeatedKeyError among them, and RecursionError for deep nesting."""
    return _DECODER.decode(text if isinstance(text, str) else text.decode())


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
    raise ValueError(f"{text} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
