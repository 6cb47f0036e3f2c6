"""Message: a turn, and a conversation's parts."""

from polyvera.model.message import Conversation, Message


def test_a_turn_may_lose_a_field_and_a_conversation_its_end() -> None:
    turn = Message("user", "x", (("name", "a"), ("age", 1)))
    assert turn.without("name") == Message("user", "x", (("age", 1),))
    whole = Conversation((Message("system", "s"), turn), ({"type": "function"},))
    assert whole[:1] == Conversation((Message("system", "s"),), whole.tools)
