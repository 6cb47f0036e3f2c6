"""An answer in the shapes of OpenAI's two endpoints."""

import pytest

from polyvera.engine.generation.request import Token
from polyvera.server.responses import CHAT, TEXT, page_of

NAMES = {1: "the", 2: " é", 3: "!"}
TOKENS = [Token(1, -0.5, ((1, -0.5), (3, -2.0))), Token(2, -0.25, ((2, -0.25),))]


def test_a_choice_is_a_message_or_a_text() -> None:
    assert CHAT.choice("hi", None)["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert TEXT.choice("hi", None) == {"text": "hi", "logprobs": None}


def test_the_first_part_of_a_chat_has_its_role() -> None:
    assert CHAT.part("a", None, True)["delta"] == {"role": "assistant", "content": "a"}
    assert CHAT.part("b", None, False)["delta"] == {"content": "b"}
    assert TEXT.part("a", None, True) == TEXT.part("a", None, False) == {"text": "a", "logprobs": None}


def test_logprobs_of_a_chat_have_bytes_and_alternatives() -> None:
    first, second = CHAT.logprobs(TOKENS, NAMES.__getitem__, 0)["content"]
    assert first["token"] == "the" and [t["token"] for t in first["top_logprobs"]] == ["the", "!"]
    assert second["bytes"] == list(" é".encode()) and second["logprob"] == -0.25


@pytest.mark.parametrize("before", [0, 10])
def test_logprobs_of_a_text_have_offsets(before: int) -> None:
    found = TEXT.logprobs(TOKENS, NAMES.__getitem__, before)
    assert found["tokens"] == ["the", " é"] and found["text_offset"] == [before, before + 3]
    assert found["token_logprobs"] == [-0.5, -0.25] and found["top_logprobs"][0] == {"the": -0.5, "!": -2.0}


def test_the_two_name_their_objects() -> None:
    assert (CHAT.prefix, CHAT.kind, CHAT.part_kind) == ("chatcmpl-", "chat.completion", "chat.completion.chunk")
    assert (TEXT.prefix, TEXT.kind, TEXT.part_kind) == ("cmpl-", "text_completion", "text_completion")


def test_a_page_names_its_ends() -> None:
    page = page_of([{"id": "b"}, {"id": "a"}], has_more=True)
    assert (page["first_id"], page["last_id"], page["has_more"], len(page["data"])) == ("b", "a", True, 2)
    assert page_of([], has_more=False) == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
