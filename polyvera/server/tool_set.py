"""ToolSet: the tools of one request, told to the model in its family's format, and bound by a grammar where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyvera.model.message import Message, Tools
from polyvera.model.tool_formats import ToolFormat, format_of, told
from polyvera.server.answer_grammar import MAX_CALLS, call_grammar
from polyvera.server.requests import ChatBody
from polyvera.server.tool_bodies import NamedTool, ToolBody
from polyvera.server.tool_parser import ToolParser


@dataclass(frozen=True, slots=True)
class ToolSet:
    """format: of the model's family. tools: that the model is told of. called: those it must call one of, or none.

    most: calls that are wanted of one answer, None for any number.
    """

    format: ToolFormat
    tools: Sequence[ToolBody]
    called: Sequence[ToolBody]
    is_parallel: bool
    most: int | None = None

    @classmethod
    def of(cls, body: ChatBody, tokenizer: Any) -> ToolSet:
        """The tools of a chat."""
        choice, tools = body.tool_choice, body.tools
        called: Sequence[ToolBody] = tools if choice == "required" else ()
        if isinstance(choice, NamedTool):
            called = [tool for tool in tools if tool.function.name == choice.function.name]
        is_parallel = body.parallel_tool_calls is True and choice == "required"  # unasked, one call is enough
        most = 1 if body.parallel_tool_calls is False else None
        return cls(format_of(tokenizer.chat_template), () if choice == "none" else tools, called, is_parallel, most)

    def told(self, messages: Sequence[Message], max_context: int) -> tuple[tuple[Message, ...], Tools]:
        """The messages and tools for the chat template.

        A grammar knows the tools that must be called: where a template does not, and the context is so small that
        their description would leave no room, it is left out.
        """
        tools, room = [tool.plain for tool in self.tools], max_context // 2
        if self.called and self.format.prompts and len(self.format.prompt(tools, room)) > room:
            tools = []
        return told(self.format, messages, tools, room)

    def grammar(self, tokenizer: Any) -> str | None:
        """What the answer follows, None for nothing."""
        if not self.called:
            return None
        functions = [tool.function.model_dump(include={"name", "parameters"}) for tool in self.called]
        token = tokenizer.get_added_vocab().get(self.format.token)
        return call_grammar(self.format, functions, MAX_CALLS if self.is_parallel else 1, token)

    def parser(self) -> ToolParser | None:
        """Of one answer, None where there is nothing to call."""
        return ToolParser(self.format, {tool.function.name for tool in self.tools}) if self.tools else None
