"""The values that bodies have, each with its bound, which is checked before anything that grows with the value."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Discriminator, Field, Tag

from polyvera.engine.generation.request import (
    MAX_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
)

MAX_TEXT_CHARS = 2**22
MAX_TOKENS = 2**20
MAX_PROMPTS = 2048
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_CHOICES = 64
NO_LOC = "~"  # begins the name of an arm of a union, which no error tells
TEXT, NUMBER, LIST, OBJECT = (Tag(f"{NO_LOC}{kind}") for kind in ("text", "number", "list", "object"))

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
ModelName = Annotated[str, Field(max_length=512)]
AdapterName = Annotated[str, Field(max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS, fail_fast=True)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


def _kind(value: Any) -> str | None:
    """Which arm of a union a value is of, by its type alone: what is wrong with it is then told of this arm."""
    kinds = ((str, TEXT), (int | float, NUMBER), (list, LIST), (dict | BaseModel, OBJECT))
    return next((tag.tag for kind, tag in kinds if isinstance(value, kind) and not isinstance(value, bool)), None)


def _by_kind(words: str) -> Discriminator:
    return Discriminator(_kind, custom_error_type="kind", custom_error_message=f"must be {words}")


TEXT_OR_LIST, TEXT_OR_OBJECT = _by_kind("a string or a list"), _by_kind("a string or an object")
AUTO_OR_NUMBER = _by_kind("'auto' or a number")


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _numbered(value: Any) -> Any:
    """JSON's keys are texts, and these are tokens."""
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.isascii() for key in value):
        return value
    return {int(key) if key.isdigit() and len(key) < MAX_DIGITS else key: number for key, number in value.items()}


MAX_DIGITS = 11
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True), BeforeValidator(_several)]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_numbered)]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be -1 or at least 1")
    return value


Truncation = Annotated[int, Field(ge=-1, le=2**31 - 1), AfterValidator(_not_zero)]
TextOrTexts = Annotated[
    Annotated[Text, TEXT] | Annotated[list[Text], Field(max_length=MAX_PROMPTS, fail_fast=True), LIST], TEXT_OR_LIST
]


def _arm(value: Any) -> str | None:
    """Which arm of Prompt a value is of, by itself and its first item alone."""
    if isinstance(value, str):
        return "~text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else []
    return "~texts" if isinstance(first, str) else "~token_lists" if isinstance(first, list) else "~tokens"


Prompt = Annotated[
    Annotated[Text, Tag("~text")]
    | Annotated[TokenIds, Tag("~tokens")]
    | Annotated[list[Text], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag("~texts")]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True), Tag("~token_lists")],
    Discriminator(
        _arm,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, a list of strings, a list of tokens, or a list of lists of tokens",
    ),
]
Prompts = list[str] | list[list[int]]


def several(given: str | list[str] | list[int] | list[list[int]]) -> Prompts:
    """One text or list of tokens for each prompt."""
    if isinstance(given, str):
        return [given]
    return [given] if given and isinstance(given[0], int) else given  # type: ignore[return-value]
