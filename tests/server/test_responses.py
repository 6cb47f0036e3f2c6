"""An answer in the shapes of OpenAI's two endpoints."""

import pytest

from polyvera.engine.generation.request import Token
from polyvera.model.token_bytes import Spelling
from polyvera.server.responses import CHAT, TEXT, EntryWriter, Part, page_of
from polyvera.server.tool_parser import ToolCall

SPELLED = {
    1: Spelling("the", b"the"),
    2: Spelling(" é", " é".encode()),
    3: Spelling("!", b"!"),
    4: Spelling("bytes:\\xc3", b"\xc3"),
    5: Spelling("bytes:\\xa9", b"\xa9"),
    6: Spelling("!", b"!"),
    7: Spelling("</s>", b""),
}
TOKENS = [Token(1, -0.5, ((1, -0.5), (3, -2.0))), Token(2, -0.25, ((2, -0.25),))]


def test_a_choice_is_a_message_or_a_text() -> None:
    assert CHAT.choice(Part("hi"))["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert TEXT.choice(Part("hi")) == {"text": "hi", "logprobs": None}


def test_calls_are_in_the_message_and_numbered_in_a_stream() -> None:
    call = ToolCall("call_1", "f", '{"a": 1}')
    told = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = CHAT.choice(Part("", (call,)))["message"]
    assert message == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [told]}
    assert CHAT.delta(Part("", (call,), at=2), False)["delta"] == {"tool_calls": [{"index": 2, **told}]}
    assert CHAT.delta(Part("so", (call,)), False)["delta"] == {"content": "so", "tool_calls": [{"index": 0, **told}]}


def test_the_first_part_of_a_chat_has_its_role() -> None:
    assert CHAT.delta(Part("a"), True)["delta"] == {"role": "assistant", "content": "a"}
    assert CHAT.delta(Part("b"), False)["delta"] == {"content": "b"}
    assert TEXT.delta(Part("a"), True) == TEXT.delta(Part("a"), False) == {"text": "a", "logprobs": None}


class Spelled:
    def of(self, token: int, *, is_first: bool = False) -> Spelling:
        return Spelling("The", b"The") if is_first and token == 1 else SPELLED[token]


def writer(at: int = 0) -> EntryWriter:
    return EntryWriter(Spelled(), at)  # type: ignore[arg-type]


def test_logprobs_of_a_chat_have_bytes_and_alternatives() -> None:
    first, second = CHAT.logprobs(writer().add(TOKENS, "The é", is_last=True))["content"]
    assert first["token"] == "The" and [t["token"] for t in first["top_logprobs"]] == ["The", "!"]
    assert second["bytes"] == list(" é".encode()) and second["logprob"] == -0.25


@pytest.mark.parametrize("before", [0, 10])
def test_logprobs_of_a_text_have_offsets(before: int) -> None:
    found = TEXT.logprobs(writer(before).add(TOKENS, "The é", is_last=True))
    assert found["tokens"] == ["The", " é"] and found["text_offset"] == [before, before + 3]
    assert found["token_logprobs"] == [-0.5, -0.25] and found["top_logprobs"][0] == {"The": -0.5, "!": -2.0}


def test_parts_of_a_character_are_told_by_their_own_bytes() -> None:
    tokens = [Token(7, 0.0), Token(4, -1.0), Token(5, -1.0), Token(1, -1.0), Token(7, -1.0)]
    made = writer()
    entries = [*made.add(tokens[:2], ""), *made.add(tokens[2:], "éthe", is_last=True)]
    content = CHAT.logprobs(entries)["content"]
    assert [one["token"] for one in content] == ["</s>", "bytes:\\xc3", "bytes:\\xa9", "the", "</s>"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == "éthe"
    assert TEXT.logprobs(entries)["text_offset"] == [0, 0, 0, 1, 4]


def test_tokens_wait_for_their_text_and_what_a_stop_text_cuts_off_is_told_by_none() -> None:
    made, one = writer(), Token(3, -1.0)
    assert made.add([one], "") == []
    assert [e.spelling.data for e in made.add([Token(1, -1.0)], "!")] == [b"!"]
    assert made.add([Token(4, -1.0)], "") == []
    assert [e.spelling.data for e in made.add([Token(5, -1.0), Token(7, -1.0)], "th", is_last=True)] == [b"th", b""]
    assert [e.spelling.data for e in writer().add([Token(4)], "\ufffd", is_last=True)] == [b"\xc3"]


def test_two_tokens_of_one_text_have_an_entry_each_and_the_token_itself_has_one() -> None:
    [entry] = writer().add([Token(5, -9.0, ((3, -1.0), (6, -2.0)))], "\ufffd", is_last=True)
    assert TEXT.logprobs([entry])["top_logprobs"] == [{"!": -1.0, "token_id:6": -2.0, "bytes:\\xa9": -9.0}]
    [without] = writer().add([Token(5)], "\ufffd", is_last=True)
    assert TEXT.logprobs([without])["top_logprobs"] == [None]


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
