"""Content: what a message says, as one text or in parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from polyvera.server.fields import MAX_PARTS, Text
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


def _content_arm(value: Any) -> str | None:
    return "~text" if isinstance(value, str) else "~parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[TextPart], Field(max_length=MAX_PARTS), Tag("~parts")],
    Discriminator(
        _content_arm, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"
    ),
]
