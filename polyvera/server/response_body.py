"""ResponseBody: /v1/responses, as a chat of this server. Nothing is kept, so that no earlier response can be named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from polyvera.engine.generation.request import MAX_SCHEMA_CHARS
from polyvera.server.fields import (
    LIST,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TEXT_CHARS,
    OBJECT,
    TEXT,
    TEXT_OR_LIST,
    TEXT_OR_OBJECT,
    Count,
    ModelName,
    Text,
)
from polyvera.server.neutral_fields import ITEM, RESPONSE, RESPONSE_TEXT
from polyvera.server.request_body import RequestBody
from polyvera.server.requests import PROMPT, ChatBody
from polyvera.server.tool_bodies import MAX_TOOLS, CallId, FunctionName

PART_TYPES = ("input_text", "output_text", "text")


class InputPart(RequestBody):
    """A part of a message. Parts of other types are not understood here."""

    neutral = ITEM

    type: Literal["input_text", "output_text", "text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") not in PART_TYPES:
            raise ValueError(f"parts of type {str(values.get('type'))[:40]} are not read here; input_text is")
        return values


Parts = Annotated[Annotated[Text, TEXT] | Annotated[list[InputPart], Field(max_length=MAX_PARTS), LIST], TEXT_OR_LIST]


class InputItem(RequestBody):
    """A message, a call of a function, or what came of one."""

    neutral = ITEM

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None
    arguments: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = None
    output: Parts | None = None

    @model_validator(mode="after")
    def _whole(self) -> InputItem:
        for field in NEEDED[self.type]:
            if getattr(self, field) is None:
                raise ValueError(f"{field} is required in an item of type {self.type}")
        return self

    @property
    def message(self) -> dict[str, Any]:
        """As a message of a chat."""
        if self.type == "function_call":
            call = {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        if self.type == "function_call_output":
            return {"role": "tool", "tool_call_id": self.call_id, "content": _text(self.output)}
        return {"role": self.role, "content": _text(self.content)}


NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class ResponseTool(RequestBody):
    """A function that may be called."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] = ""
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=MAX_SCHEMA_CHARS)
    strict: bool = False


class ResponseNamedTool(RequestBody):
    """The one tool to call."""

    type: Literal["function"]
    name: FunctionName


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], TEXT] | Annotated[ResponseNamedTool, OBJECT], TEXT_OR_OBJECT
]


class TextFormat(RequestBody):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] = ""
    description: Annotated[str, Field(max_length=MAX_SCHEMA_CHARS)] = ""
    strict: bool = True
    schema_: Annotated[dict[str, Any], Field(max_length=MAX_SCHEMA_CHARS)] | None = Field(alias="schema", default=None)

    @model_validator(mode="after")
    def _whole(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema is given with type 'json_schema', and only with it")
        return self

    @property
    def response_format(self) -> dict[str, Any]:
        """As a chat has it."""
        if self.schema_ is None:
            return {"type": self.type}
        given = {"name": self.name, "strict": self.strict, "schema": self.schema_}
        return {"type": self.type, "json_schema": given}


class ResponseText(RequestBody):
    """What is asked of the text."""

    neutral = RESPONSE_TEXT

    format: TextFormat | None = None


class ResponseBody(RequestBody):
    """/v1/responses."""

    neutral = RESPONSE

    model: ModelName
    input: Annotated[
        Annotated[Text, TEXT] | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), LIST],
        TEXT_OR_LIST,
    ]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    text: ResponseText = ResponseText()
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool = True
    metadata: dict[str, Any] = Field(default_factory=dict, max_length=64)

    @property
    def chat(self) -> ChatBody:
        """The same as a chat."""
        given: dict[str, Any] = {
            "model": self.model,
            "messages": _messages(self.instructions, self.input),
            "max_tokens": self.max_output_tokens,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools],
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls if "parallel_tool_calls" in self.model_fields_set else None,
            "response_format": None if self.text.format is None else self.text.format.response_format,
        }
        if isinstance(self.tool_choice, ResponseNamedTool):
            given["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        return InputChat.model_validate(given)


class InputChat(ChatBody):
    """A chat whose messages are called input."""

    client_fields: ClassVar[Mapping[str, str]] = {
        PROMPT: "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text",
    }


def _function(tool: ResponseTool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def _messages(instructions: str | None, given: str | Sequence[InputItem]) -> list[dict[str, Any]]:
    """Calls that follow each other are one message."""
    found: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for item in given:
        message, last = item.message, found[-1] if found else {}
        if "tool_calls" in message and last.get("role") == "assistant":
            found[-1] = {**last, "tool_calls": [*last.get("tool_calls", ()), *message["tool_calls"]]}
        else:
            found.append(message)
    return found


def _text(content: str | Sequence[InputPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())
