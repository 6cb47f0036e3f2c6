"""CompletionTask: how an answer that called tools ended."""

import pytest

from polyvera.server.completion_task import finish_of


@pytest.mark.parametrize(
    ("reason", "num_calls", "told"),
    [("stop", 0, "stop"), ("stop", 2, "tool_calls"), ("length", 1, "length"), (None, 1, None), (None, 0, None)],
)
def test_calls_are_why_an_answer_ended_unless_it_was_cut_off(reason: str | None, num_calls: int, told: str) -> None:
    assert finish_of(reason, num_calls) == told
