"""read_body: a JSON body as one of the kinds of requests, with its parts counted before they are made."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel

from polyvera.errors import ServeError
from polyvera.strict_json import RepeatedKeyError, loads

MAX_CONTAINERS, MAX_VALUES = 2**14, 2**18
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
T = TypeVar("T", bound=BaseModel)


def read_body(data: bytes, kind: type[T]) -> T:
    """The body. Raises ValidationError, and ServeError for what is not JSON, is ambiguous, or has too many parts."""
    _check_size(data)
    try:
        tree = loads(data)
    except RepeatedKeyError as error:
        raise ServeError(f"the body is ambiguous: {error}", error.key[:200]) from None
    except (ValueError, RecursionError) as error:
        raise ServeError(f"the body is not valid JSON: {error}") from None
    return kind.model_validate(tree)


def _check_size(data: bytes) -> None:
    """Each part becomes an object of Python's, which costs a hundred times its bytes."""
    if _are_few(data) or _are_few(STRING.sub(b"", data)):
        return
    raise ServeError(f"the body has too many parts: at most {MAX_CONTAINERS} lists and objects, {MAX_VALUES} values")


def _are_few(data: bytes) -> bool:
    return data.count(b"[") + data.count(b"{") <= MAX_CONTAINERS and data.count(b",") <= MAX_VALUES
