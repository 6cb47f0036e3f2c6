"""Content: a text, or parts that are text."""

import pytest
from pydantic import TypeAdapter, ValidationError

from polyvera.server.text_parts import Content, TextPart

CONTENT = TypeAdapter(Content)


def test_a_text_or_parts_of_text() -> None:
    assert CONTENT.validate_python("a") == "a"
    assert CONTENT.validate_python([{"type": "text", "text": "a"}]) == [TextPart(type="text", text="a")]


@pytest.mark.parametrize("value", [1, {}, None])
def test_nothing_else(value: object) -> None:
    with pytest.raises(ValidationError, match="must be a string or a list"):
        CONTENT.validate_python(value)


def test_parts_of_other_types_are_named() -> None:
    with pytest.raises(ValidationError, match="parts of type image_url are not read here; text is"):
        CONTENT.validate_python([{"type": "image_url"}])
