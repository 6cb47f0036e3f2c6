"""The parts of a body that tell of tools: what is known is taken, what goes together is checked."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.server.requests import ChatBody
from polyvera.server.tool_bodies import CalledTool, ToolBody

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])
def test_each_choice_is_taken(choice: Any) -> None:
    body = ChatBody.model_validate({**CHAT, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False})
    assert body.tools[0].plain["function"]["name"] == "f"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tools": [TOOL, TOOL]}, "comes twice"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "'g' is not among"),
        ({"tools": [{"type": "web_search"}]}, "tools of type web_search are not known here"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id goes with role tool"),
        ({"messages": [{"role": "user"}]}, "content is required"),
        ({"continue_final_message": True}, "the last message is the assistant's"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize is no setting of a template"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ChatBody.model_validate({**CHAT, **given})


def test_a_tool_and_a_call_are_plain() -> None:
    bare = ToolBody.model_validate({"type": "function", "function": {"name": "f"}})
    assert bare.plain["function"]["parameters"] == {"type": "object", "properties": {}}
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert CalledTool.model_validate(called).plain["function"]["arguments"] == {"a": 1}
    called["function"] = {"name": "f", "arguments": "{broken"}
    assert CalledTool.model_validate(called).plain["function"]["arguments"] == "{broken"
