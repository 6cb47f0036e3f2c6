"""Content: what a message says, as one text or in parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polyvera.server.fields import LIST, MAX_PARTS, TEXT, TEXT_OR_LIST, Text
from polyvera.server.request_body import RequestBody


class TextPart(RequestBody):
    """A part of a message. Parts of other types are not understood here."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") != "text":
            raise ValueError(f"parts of type {str(values.get('type'))[:40]} are not read here; text is")
        return values


Content = Annotated[
    Annotated[Text, TEXT] | Annotated[list[TextPart], Field(max_length=MAX_PARTS), LIST],
    TEXT_OR_LIST,
]
