"""Grammars of answers: one of some choices, a regular expression, calls of tools; in llguidance's form of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from polyvera.engine.generation.grammar_worker import COMPACT
from polyvera.model.tool_formats import ToolFormat
from polyvera.server.json_schema import closed

MAX_CALLS = 16  # a small model may not find an end of its own


def choice_grammar(choices: Sequence[str]) -> str:
    """Of answers that are one of some texts."""
    return "start: " + " | ".join(map(_literal, choices))


def regex_grammar(pattern: str) -> str:
    """Of answers that a regular expression matches as a whole, as Rust's library takes it."""
    from llguidance import LLMatcher

    tree = json.loads(LLMatcher.grammar_from_regex(pattern))
    return str(tree["grammars"][0]["lark_grammar"])


def call_grammar(format_: ToolFormat, functions: Sequence[Mapping[str, Any]], most: int, token: int | None) -> str:
    """Of answers that are from one call of some functions to so many, written as the model's family writes them.

    functions: each with name, parameters and strict. token: of what stands before calls, None for nothing.
    """
    begin = "" if token is None else f"<[{token}]> "
    parts = [_literal(part) for part in (format_.opening, format_.closing)]
    opening, closing = (f"{part} " if part != '""' else "" for part in parts)
    more = f"({_literal(format_.between)} call){{0,{most - 1}}} " if most > 1 else ""
    schema = json.dumps(_calls_schema(format_, functions), ensure_ascii=False)
    return f"start: {begin}{opening}call {more}{closing}\ncall: %json {schema}"


def _calls_schema(format_: ToolFormat, functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each function's schema stands among the definitions, where its own references still lead."""
    defs = {f"f{n}": _moved(_parameters(one), f"#/$defs/f{n}") for n, one in enumerate(functions)}
    return {
        "x-guidance": dict(COMPACT),
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": one["name"]},
                    format_.arguments: {"$ref": f"#/$defs/f{n}"},
                },
                "required": ["name", format_.arguments],
                "additionalProperties": False,
            }
            for n, one in enumerate(functions)
        ],
        "$defs": defs,
    }


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of an object, closed where it names its keys: a small model would invent others."""
    given = {"type": "object", **(function.get("parameters") or {"properties": {}})}
    found: dict[str, Any] = closed(given)
    return found


def _moved(schema: Any, to: str) -> Any:
    """The schema with its references to itself led to where it is put."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _moved(value, to) for key, value in schema.items()}
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        found["$ref"] = to + ref[1:]
    return found


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
