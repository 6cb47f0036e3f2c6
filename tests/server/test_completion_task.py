"""CompletionTask: how an answer that called tools ended."""

import pytest

from polyvera.model.tool_formats import HERMES
from polyvera.server.completion_task import AnswerParser, finish_of
from polyvera.server.tool_parser import ToolParser


@pytest.mark.parametrize(
    ("reason", "num_calls", "told"),
    [("stop", 0, "stop"), ("stop", 2, "tool_calls"), ("length", 1, "length"), (None, 1, None), (None, 0, None)],
)
def test_calls_are_why_an_answer_ended_unless_it_was_cut_off(reason: str | None, num_calls: int, told: str) -> None:
    assert finish_of(reason, num_calls) == told


@pytest.mark.parametrize(("most", "num"), [(None, 3), (1, 1)])
@pytest.mark.parametrize("size", [5, 1000])
def test_calls_beyond_those_that_are_wanted_are_left_out(most: int | None, num: int, size: int) -> None:
    text = HERMES.text_of([{"name": "f", "arguments": {}}] * 3)
    parser, calls = AnswerParser(ToolParser(HERMES, {"f"}), most), []
    for at in range(0, len(text), size):
        calls += parser.add(text[at : at + size], None if at + size < len(text) else "stop").calls
    assert len(calls) == num == parser.num_calls


def test_without_tools_all_is_text() -> None:
    assert AnswerParser(None).add("<tool_call>", "stop").text == "<tool_call>"
