"""MessageBody: /v1/messages, Anthropic's way to ask for a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polyvera.engine.generation.request import MAX_SCHEMA_CHARS
from polyvera.server.fields import (
    LIST,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TEXT_CHARS,
    TEXT,
    TEXT_OR_LIST,
    Count,
    ModelName,
    StopTexts,
    Text,
)
from polyvera.server.neutral_fields import ANTHROPIC, ANTHROPIC_TOOL, BLOCK
from polyvera.server.request_body import RequestBody
from polyvera.server.requests import ChatBody
from polyvera.server.tool_bodies import MAX_TOOLS, CallId, FunctionName


class TextBlock(RequestBody):
    """A piece of text. Blocks of other types are not understood here."""

    neutral = BLOCK

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        return _of_type(values, ("text",))


TextBlocks = Annotated[list[TextBlock], Field(max_length=MAX_PARTS)]
TextOrBlocks = Annotated[Annotated[Text, TEXT] | Annotated[TextBlocks, LIST], TEXT_OR_LIST]


class Block(RequestBody):
    """A piece of a message: text, a call of a tool, or what came of one."""

    neutral = BLOCK

    type: Literal["text", "tool_use", "tool_result"]
    text: Text | None = None
    id: CallId | None = None
    name: FunctionName | None = None
    input: Annotated[dict[str, Any], Field(max_length=MAX_SCHEMA_CHARS)] | None = None
    tool_use_id: CallId | None = None
    content: TextOrBlocks = ""
    is_error: bool = False

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, values: Any) -> Any:
        return _of_type(values, tuple(NEEDED_BY))

    @model_validator(mode="after")
    def _whole(self) -> Block:
        for field in NEEDED_BY[self.type]:
            if getattr(self, field) is None:
                raise ValueError(f"{field} is required in a block of type {self.type}")
        return self

    @property
    def call(self) -> dict[str, Any]:
        """As a call in a message of a chat."""
        arguments = json.dumps(self.input, ensure_ascii=False)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}


NEEDED_BY = {"text": ("text",), "tool_use": ("id", "name", "input"), "tool_result": ("tool_use_id",)}


class Turn(RequestBody):
    """A message."""

    role: Literal["user", "assistant"]
    content: Annotated[Annotated[Text, TEXT] | Annotated[list[Block], Field(max_length=MAX_PARTS), LIST], TEXT_OR_LIST]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As messages of a chat: what came of tools comes first."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        results = [one for one in self.content if one.type == "tool_result"]
        text = "".join(one.text or "" for one in self.content)
        calls = [one.call for one in self.content if one.type == "tool_use"]
        found: list[dict[str, Any]] = [
            {"role": "tool", "tool_call_id": one.tool_use_id, "content": text_of(one.content)} for one in results
        ]
        if text or calls or not found:
            found.append({"role": self.role, "content": text, **({"tool_calls": calls} if calls else {})})
        return found


class MessageTool(RequestBody):
    """A tool of the client's."""

    neutral = ANTHROPIC_TOOL

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] = ""
    input_schema: dict[str, Any] = Field(max_length=MAX_SCHEMA_CHARS)

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, values: Any) -> Any:
        return _of_type({"type": "custom", **values} if isinstance(values, dict) else values, ("custom",))


class MessageToolChoice(RequestBody):
    """Which tool to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> MessageToolChoice:
        if (self.name is not None) != (self.type == "tool"):
            raise ValueError("name goes with type 'tool', and with it alone")
        return self

    @property
    def chosen(self) -> Any:
        """As a chat has it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class MessageBody(RequestBody):
    """/v1/messages."""

    neutral = ANTHROPIC

    model: ModelName
    max_tokens: Count
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: TextOrBlocks | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    stop_sequences: StopTexts = Field(default_factory=list)
    stream: bool = False
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: MessageToolChoice | None = None

    @property
    def chat(self) -> ChatBody:
        """The same as a chat."""
        choice = self.tool_choice
        system = [] if self.system is None else [{"role": "system", "content": text_of(self.system)}]
        given = {
            "model": self.model,
            "messages": [*system, *(message for turn in self.messages for message in turn.messages)],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools],
            "tool_choice": choice and choice.chosen,
            "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        }
        return ChatBody.model_validate(given)


class CountBody(RequestBody):
    """/v1/messages/count_tokens."""

    neutral = ANTHROPIC

    model: ModelName
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: TextOrBlocks | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: MessageToolChoice | None = None

    @property
    def chat(self) -> ChatBody:
        """The same as a chat."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return MessageBody.model_construct(**given, max_tokens=1).chat


def text_of(content: str | Sequence[TextBlock]) -> str:
    """The text of one or several pieces."""
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _function(tool: MessageTool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}


def _of_type(values: Any, known: Sequence[str]) -> Any:
    if isinstance(values, dict) and values.get("type") not in known:
        raise ValueError(f"type {str(values.get('type'))[:40]} is not read here; {', '.join(known)} is")
    return values
