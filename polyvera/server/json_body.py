"""read_body: a JSON body as one of the kinds of requests, with its parts counted before they are made."""

from __future__ import annotations

import re
from itertools import accumulate, islice
from typing import TypeVar

from pydantic import BaseModel

from polyvera.errors import ServeError
from polyvera.strict_json import HalfCharacterError, JsonError, RepeatedKeyError, loads

MAX_CONTAINERS, MAX_VALUES = 2**14, 2**18
MAX_DEPTH = 128  # what reads a schema calls itself a few times for each level
BRACKET = re.compile(rb"[\[\]{}]")
# One that does not end goes on to the end of all: what is looked through once is not looked through again.
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
T = TypeVar("T", bound=BaseModel)


def read_body(data: bytes, kind: type[T]) -> T:
    """The body. Raises ValidationError, and ServeError for what is not JSON, is ambiguous, or has too many parts."""
    _check_size(data)
    try:
        tree = loads(data)
    except RepeatedKeyError as error:
        raise ServeError(f"the body is ambiguous: {error}", error.key[:200]) from None
    except HalfCharacterError as error:
        raise ServeError(str(error)[:1000], error.key[:200] or None) from None
    except JsonError as error:
        raise ServeError(f"the body is not valid JSON: {error}") from None
    return kind.model_validate(tree)


def _check_size(data: bytes) -> None:
    """Each part becomes an object of Python's, which costs a hundred times its bytes."""
    if _num_containers(data) <= MAX_DEPTH and data.count(b",") <= MAX_VALUES:
        return
    marks = STRING.sub(b"", data)
    if _num_containers(marks) > MAX_CONTAINERS or marks.count(b",") > MAX_VALUES:
        raise ServeError(
            f"the body has too many parts: at most {MAX_CONTAINERS} lists and objects, {MAX_VALUES} values"
        )
    if _depth(marks) > MAX_DEPTH:
        raise ServeError(f"the body is nested too deeply: at most {MAX_DEPTH} lists and objects, one in another")


def _num_containers(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _depth(marks: bytes) -> int:
    """How many are open at once, at most; more that close than are taken at all were never open."""
    found = islice(BRACKET.finditer(marks), 2 * MAX_CONTAINERS)
    return max(accumulate(1 if mark[0] in b"[{" else -1 for mark in found), default=0)
