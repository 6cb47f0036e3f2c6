"""ResponseBody: as the chat that it is."""

from typing import Any

import pytest
from pydantic import ValidationError

from polyvera.server.response_body import InputItem, ResponseBody


def test_calls_side_by_side_are_one_message() -> None:
    calls = [{"type": "function_call", "call_id": str(i), "name": "f", "arguments": "{}"} for i in range(2)]
    body = ResponseBody.model_validate({"model": "m", "input": [{"role": "user", "content": "x"}, *calls]})
    user, called = body.chat.messages
    assert user.role == "user" and [call.id for call in called.tool_calls] == ["0", "1"]
    assert (
        ResponseBody.model_validate({"model": "m", "input": "x", "instructions": "y"}).chat.messages[0].role == "system"
    )


@pytest.mark.parametrize(
    "item", [{"type": "message"}, {"type": "function_call", "call_id": "x"}, {"type": "function_call_output"}, {}]
)
def test_an_item_is_whole(item: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is required in an item"):
        InputItem.model_validate(item)
