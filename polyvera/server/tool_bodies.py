"""The parts of a chat's body that tell of tools: which there are, which to call, which were called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from polyvera.engine.generation.request import MAX_SCHEMA_CHARS
from polyvera.errors import SamplingError
from polyvera.model.tool_formats import call_of, tool_of
from polyvera.server.fields import MAX_TEXT_CHARS, OBJECT, TEXT, TEXT_OR_OBJECT
from polyvera.server.neutral_fields import CALL
from polyvera.server.request_body import RequestBody

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
CallId = Annotated[str, Field(max_length=256)]


class FunctionBody(RequestBody):
    """A function that may be called. parameters: a JSON schema of an object."""

    name: FunctionName
    description: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] = ""
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=MAX_SCHEMA_CHARS)
    strict: bool = False


class ToolBody(RequestBody):
    """A tool. Those of other types are not understood here."""

    type: Literal["function"] = "function"
    function: FunctionBody

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type", "function") != "function":
            raise ValueError(f"tools of type {str(values.get('type'))[:40]} are not known here; functions are")
        return values

    @property
    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        return tool_of(self.function.name, self.function.description, self.function.parameters)


class NamedFunction(RequestBody):
    """The name of a function."""

    name: FunctionName


class NamedTool(RequestBody):
    """The one tool to call."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], TEXT] | Annotated[NamedTool, OBJECT], TEXT_OR_OBJECT
]


class CalledFunction(RequestBody):
    """What was called. arguments: JSON."""

    name: FunctionName
    arguments: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] = "{}"


class CalledTool(RequestBody):
    """A call in an earlier answer."""

    neutral = CALL

    id: CallId = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def plain(self) -> dict[str, Any]:
        """As chat templates take it."""
        return call_of(self.function.name, self.function.arguments, self.id)


def check_tools(tools: Sequence[ToolBody], choice: str | NamedTool | None) -> None:
    """Raises SamplingError for a choice among tools that is none."""
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SamplingError(f"tools: the function {twice!r} comes twice", "tools")
    if choice == "required" and not names:
        raise SamplingError("tool_choice: 'required' needs tools", "tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        shown = ", ".join(names) or "none"
        raise SamplingError(
            f"tool_choice: {choice.function.name!r} is not among the functions of tools: {shown[:400]}", "tool_choice"
        )
