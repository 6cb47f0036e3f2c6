"""Strict schemas: every object that names its keys is closed, unless it says otherwise."""

from typing import Any

import pytest

from polyvera.server.json_schema import closed

OBJECT: dict[str, Any] = {"type": "object", "properties": {"v": {"type": "integer"}}}
CLOSED = {**OBJECT, "additionalProperties": False}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: one,
        lambda one: {"type": "array", "items": one},
        lambda one: {"anyOf": [one, {"type": "null"}]},
        lambda one: {"oneOf": [{"type": "null"}, one]},
        lambda one: {"$defs": {"a": one}, "$ref": "#/$defs/a"},
        lambda one: {"type": "object", "properties": {"inner": one}, "additionalProperties": False},
    ],
)
def test_objects_are_closed_at_any_depth(wrap: Any) -> None:
    assert closed(wrap(OBJECT)) == wrap(CLOSED)


@pytest.mark.parametrize(
    "schema",
    [
        {**OBJECT, "additionalProperties": True},
        {**OBJECT, "additionalProperties": {"type": "string"}},
        {**OBJECT, "patternProperties": {"^x": {"type": "string"}}},
        {"type": "object"},
        {"allOf": [OBJECT, OBJECT]},
        {"enum": [{"properties": {}}]},
        {"const": {"properties": {}}},
        True,
    ],
)
def test_what_says_otherwise_is_kept(schema: Any) -> None:
    assert closed(schema) == schema
