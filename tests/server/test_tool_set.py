"""ToolSet: what the model is told of, and what it must call."""

from typing import Any

import pytest
from tiny_serve import make_tokenizer

from polyvera.data.tables import table
from polyvera.model.message import Message
from polyvera.model.prompt import chat_ids, prompt_ids
from polyvera.model.tool_formats import MISTRAL, SMOLLM
from polyvera.server.requests import ChatBody, messages_of
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


CALLED = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}
CHAT = [
    {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": "x?", "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "content": "42", "tool_call_id": "c1"},
]
OWN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }} {{ m.name }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}\n{% endfor %}"
)


@pytest.mark.parametrize("template", [None, OWN, OWN + "<tool_call>"])
def test_a_chat_is_asked_as_training_reads_it(template: str | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        template or "{% for m in messages %}{{ m.role }} {{ m.name }}: {{ m.content }}\n{% endfor %}"
    )
    body = ChatBody.model_validate({"model": "m", "messages": CHAT, "tools": FUNCTIONS})
    messages, tools = ToolSet.of(body, tokenizer).told(messages_of(body.messages), 8192)
    answer = {"role": "assistant", "content": "yes"}
    learnt = table("rows", [(1, {"messages": [*CHAT, answer], "tools": FUNCTIONS})]).examples[0]
    assert chat_ids(tokenizer, messages, given=body.template(tools)) == prompt_ids(tokenizer, learnt.asked)
