"""ToolSet: what the model is told of, and what it must call."""

from typing import Any

import pytest
from tiny_serve import make_tokenizer

from polyvera.model.prompt import Message
from polyvera.server.requests import ChatBody
from polyvera.server.tool_formats import MISTRAL, SMOLLM
from polyvera.server.tool_set import ToolSet

FUNCTIONS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
NAMED = {"type": "function", "function": {"name": "g"}}


def tool_set(tokenizer: Any = None, **given: Any) -> ToolSet:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": FUNCTIONS, **given}
    return ToolSet.of(ChatBody.model_validate(body), tokenizer or make_tokenizer())


@pytest.mark.parametrize(
    ("choice", "num_told", "num_called"),
    [("auto", 2, 0), (None, 2, 0), ("none", 0, 0), ("required", 2, 2), (NAMED, 2, 1)],
)
def test_a_choice_says_what_is_told_and_what_is_called(choice: Any, num_told: int, num_called: int) -> None:
    found = tool_set(tool_choice=choice)
    assert (len(found.tools), len(found.called)) == (num_told, num_called)
    assert (found.parser() is not None) == bool(num_told)
    assert (found.grammar(make_tokenizer()) is not None) == bool(num_called)


def test_several_calls_are_of_a_grammar_where_they_are_allowed() -> None:
    tokenizer = make_tokenizer()
    assert "{0,15}" in (tool_set(tool_choice="required", parallel_tool_calls=True).grammar(tokenizer) or "")
    assert "{0," not in (tool_set(tool_choice="required").grammar(tokenizer) or "")
    assert "{0," not in (tool_set(tool_choice=NAMED).grammar(tokenizer) or "")


def test_tools_that_a_grammar_knows_are_not_described_where_there_is_no_room() -> None:
    chat = [Message("user", "x")]
    assert tool_set(tool_choice="required").told(chat, 100) == (tuple(chat), ())
    for found in (tool_set(tool_choice="required").told(chat, 1000), tool_set().told(chat, 100)):
        assert found[0][0].role == "system" and '"name": "g"' in found[0][0].content


def test_the_family_is_the_tokenizer_s() -> None:
    tokenizer = make_tokenizer()
    assert tool_set(tokenizer).format is SMOLLM
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    tokenizer.chat_template = "[TOOL_CALLS]"
    found = tool_set(tokenizer, tool_choice="required")
    assert found.format is MISTRAL
    number = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    assert f"start: <[{number}]> " in (found.grammar(tokenizer) or "")
