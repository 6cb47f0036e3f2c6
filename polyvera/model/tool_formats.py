"""ToolFormat: how each family of models is told of tools, and how it writes its calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from polyvera.model.message import Message, Tools
from polyvera.strict_json import JsonError, loads

TOOLS_PROMPT = """\
You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the functions can be used, point it out and refuse to answer.
If the given question lacks the parameters required by the function, also point it out.

You have access to the following tools:
<tools>{tools}</tools>

The output MUST strictly adhere to the following format, and NO other text MUST be included.
The example format is as follows. Please make sure the parameter type is correct.
<tool_call>[
{{"name": "func_name1", "arguments": {{"argument1": "value1", "argument2": "value2"}}}},
... (more tool calls as required)
]</tool_call>"""

SHORT_PROMPT = "Tools: {tools}"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A family's row.

    marks: texts that its chat templates have, all of them. marker: what begins calls; '' where an answer is calls from
    its first character on. token: a special token before them, which no text shows. opening, between, closing: around
    one or several calls. arguments: their key. id_chars: the length of a call's id, 0 for any. prompts: what the model
    is told of its tools where its chat template does not know of any, the longest first.
    """

    marks: tuple[str, ...]
    marker: str
    opening: str
    between: str
    closing: str
    arguments: str = "arguments"
    token: str = ""
    id_chars: int = 0
    prompts: tuple[str, ...] = ()

    def call_id(self, given: str) -> str:
        """An id as the family's chat template takes it."""
        return sha256(given.encode()).hexdigest()[: self.id_chars] if self.id_chars else given

    def prompt(self, tools: Tools, max_chars: int | None) -> str:
        """What the model is told of tools: the longest that is short enough, or the shortest."""
        described = json.dumps(list(tools), ensure_ascii=False)
        every = [prompt.format(tools=described) for prompt in self.prompts]
        return next((one for one in every if max_chars is None or len(one) <= max_chars), every[-1])

    def text_of(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls, each with name and arguments, as the model writes them."""
        items = [json.dumps({"name": c["name"], self.arguments: c["arguments"]}, ensure_ascii=False) for c in calls]
        return self.opening + self.between.join(items) + self.closing


MISTRAL = ToolFormat(("[TOOL_CALLS]",), "", "[", ", ", "]", token="[TOOL_CALLS]", id_chars=9)
LLAMA = ToolFormat(("<|start_header_id|>", "tools", "parameters"), "", "", "; ", "", arguments="parameters")
HERMES = ToolFormat(
    ("<tool_call>", "tools"), "<tool_call>", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"
)
SMOLLM = ToolFormat((), "<tool_call>", "<tool_call>[", ", ", "]</tool_call>", prompts=(TOOLS_PROMPT, SHORT_PROMPT))
# A template that writes tools and calls in a way of its own.
OWN = replace(HERMES, marks=("tools", "tool_calls"))
FORMATS = (MISTRAL, LLAMA, HERMES, OWN, SMOLLM)  # the first whose marks are there
CALLING = ("tool_calls", "tool_call_id")


def format_of(template: object) -> ToolFormat:
    """The row of a model, by its chat template."""
    text = str(template)
    return next(row for row in FORMATS if all(mark in text for mark in row.marks))


def tool_of(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A function that may be called, as chat templates take it."""
    schema = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def call_of(name: str, arguments: str, call_id: str) -> dict[str, Any]:
    """A call, as chat templates take it: arguments as an object, where they are JSON."""
    try:
        given = loads(arguments)
    except JsonError:
        given = arguments
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": given}}


def told(
    format_: ToolFormat, messages: Sequence[Message], tools: Tools, max_chars: int | None = None
) -> tuple[tuple[Message, ...], Tools]:
    """The messages and tools for the chat template: written out where it does not know of tools.

    max_chars: of what is then said of them, if there is so short a prompt; None for the longest.
    """
    if not format_.prompts:
        return tuple(_with_ids(format_, message) for message in messages), tools
    written = [_written(format_, message) for message in messages]
    if tools:
        prompt = format_.prompt(tools, max_chars)
        has_system = bool(written) and written[0].role == "system"
        before = f"{written[0].content}\n\n" if has_system else ""
        written[: int(has_system)] = [Message("system", before + prompt)]
    return tuple(written), ()


def _with_ids(format_: ToolFormat, message: Message) -> Message:
    """Calls and their answers with ids as the template takes them."""
    given = dict(message.fields)
    if "tool_calls" in given:
        given["tool_calls"] = [{**call, "id": format_.call_id(call["id"])} for call in given["tool_calls"]]
    if "tool_call_id" in given:
        given["tool_call_id"] = format_.call_id(given["tool_call_id"])
    return replace(message, fields=tuple(given.items()))


def _written(format_: ToolFormat, message: Message) -> Message:
    given = dict(message.fields)
    fields = tuple((name, value) for name, value in message.fields if name not in CALLING)
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>", fields)
    calls = [call["function"] for call in given.get("tool_calls", ())]
    return replace(message, content=message.content + (format_.text_of(calls) if calls else ""), fields=fields)
