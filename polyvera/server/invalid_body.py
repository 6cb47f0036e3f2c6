"""What is wrong with a body, in the API's words: pydantic's types, arms and functions stay inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from polyvera.errors import ServeError
from polyvera.server.fields import NO_LOC

WORDS: Mapping[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "extra_forbidden": "this server does not know it; leave it out",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_parsing": "must be an integer",
    "int_parsing_size": "must be an integer of fewer digits",
    "int_type": "must be an integer",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "model_type": "must be an object",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be a string",
    "string_unicode": "must be valid text; it has half a character",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}


def invalid_body(error: ValidationError) -> tuple[str, str | None]:
    """The words for the first thing that is wrong, and the field of the body that it is in."""
    return _told(error.errors(include_url=False, include_input=False)[0])


def invalid_query(error: RequestValidationError) -> tuple[str, str | None]:
    """The same for the part of a URL behind the question mark, or in its path."""
    first = error.errors()[0]
    return _told({**first, "loc": first["loc"][1:]})


def _told(first: Any) -> tuple[str, str | None]:
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] in WORDS:
        said = WORDS[first["type"]].format(**first.get("ctx", {}))
    loc = [part for part in first["loc"] if not str(part).startswith(NO_LOC)]
    cause = first.get("ctx", {}).get("error")
    param = str(loc[0]) if loc else cause.param if isinstance(cause, ServeError) else None
    where = _path(loc)
    return (f"{where}: {said}" if where else said)[:1000], param[:200] if param else None


def _path(loc: list[Any]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")
