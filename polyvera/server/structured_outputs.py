"""StructuredOutputs: answers that are one of some choices, or follow an expression, a grammar or a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, model_validator

from polyvera.engine.generation.request import MAX_SCHEMA_CHARS
from polyvera.errors import SamplingError
from polyvera.server.answer_grammar import choice_grammar, regex_grammar
from polyvera.server.neutral_fields import STRUCTURES
from polyvera.server.request_body import RequestBody

MAX_STRUCTURES = 1024
Structure = Annotated[str, Field(min_length=1, max_length=4096)]


class StructuredOutputs(RequestBody):
    """vLLM's: the answer is one of some choices, or follows a regular expression, a grammar or a JSON schema."""

    neutral = STRUCTURES

    choice: Annotated[list[Structure], Field(min_length=1, max_length=MAX_STRUCTURES)] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)] | None = None
    json_: Annotated[dict[str, Any], Field(max_length=MAX_SCHEMA_CHARS)] | None = Field(alias="json", default=None)

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of choice, regex, grammar and json")
        return self

    @property
    def schema_text(self) -> str | None:
        """As SamplingParams takes it."""
        return None if self.json_ is None else json.dumps(self.json_)

    @property
    def grammar_text(self) -> str | None:
        """As SamplingParams takes it."""
        if self.choice is not None:
            return choice_grammar(self.choice)
        try:
            return self.grammar if self.regex is None else regex_grammar(self.regex)
        except (ValueError, RecursionError) as error:
            raise SamplingError(f"structured_outputs: {str(error)[:500]}", "structured_outputs") from None
