"""Events as browsers and clients read them."""

from polyvera.server.sse import event, named_event


def test_events() -> None:
    assert event({"a": "é\n"}) == 'data: {"a": "é\\n"}\n\n'.encode()
    assert named_event("ping", {}) == b"event: ping\ndata: {}\n\n"
