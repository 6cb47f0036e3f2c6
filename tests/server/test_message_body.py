"""MessageBody: as the chat that it is."""

from polyvera.server.message_body import CountBody, MessageBody, text_of

TURN = {
    "role": "user",
    "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "rain"}]},
        {"type": "text", "text": "and then?"},
    ],
}


def test_what_came_of_a_tool_is_a_message_of_its_own() -> None:
    body = MessageBody.model_validate({"model": "m", "max_tokens": 5, "messages": [TURN], "system": "s"})
    assert [(one.role, one.content) for one in body.chat.messages] == [
        ("system", "s"),
        ("tool", "rain"),
        ("user", "and then?"),
    ]
    counted = CountBody.model_validate({"model": "m", "messages": [TURN], "system": "s"})
    assert counted.chat.messages == body.chat.messages


def test_text_of_blocks() -> None:
    assert text_of("a") == "a"
