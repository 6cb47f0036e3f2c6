"""closed: a JSON schema as `strict` means it, in which an object has no keys but those that it names."""

from __future__ import annotations

from typing import Any

# Where a schema holds schemas: one, a list of them, or some by name.
ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "$defs", "definitions", "patternProperties")
OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def closed(schema: Any) -> Any:
    """The schema with every object closed that names its keys and does not say otherwise, at any depth."""
    found = _open(schema)
    if isinstance(found, dict) and "properties" in found and not any(key in found for key in OPEN):
        found["additionalProperties"] = False
    return found


def _part(key: str, value: Any) -> Any:
    if key in ONE:
        return closed(value)
    if key in LISTS and isinstance(value, list):
        return [_open(one) if key == "allOf" else closed(one) for one in value]
    if key in NAMED and isinstance(value, dict):
        return {name: closed(one) for name, one in value.items()}
    return value


def _open(schema: Any) -> Any:
    """A part of an object that other parts go on with, which is not closed itself, though what it holds is."""
    if not isinstance(schema, dict):
        return schema
    return {key: _part(key, value) for key, value in schema.items()}
