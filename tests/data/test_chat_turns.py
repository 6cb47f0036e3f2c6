"""Turns: what a conversation's rows may say, and what is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from polyvera.data.tables import read
from polyvera.errors import DataError
from polyvera.model.message import Message

Write = Callable[..., str]
USER = {"role": "user", "content": "w1"}
TOOL = {"type": "function", "function": {"name": "w9"}}
DESCRIBED = {"name": "w9", "description": "", "parameters": {"type": "object", "properties": {}}}


def call(arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "w9", "arguments": arguments, **more}}


def answer(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "w2", **more}


def first(jsonl: Write, *turns: Any, **row: Any) -> Any:
    return read(jsonl([{"messages": [USER, *turns], **row}])).examples[0]


def test_a_call_may_stand_in_place_of_a_text_and_its_arguments_are_an_object(jsonl: Write) -> None:
    result = {"role": "tool", "content": "", "tool_call_id": "c"}
    found = first(
        jsonl,
        answer(
            content=None,
            tool_calls=[
                call(
                    '{"x": 1}',
                )
                | {"id": "c"}
            ],
        ),
        result,
        answer(),
        tools=[TOOL],
    )
    assert found.tools == ({"type": "function", "function": DESCRIBED},)
    assert found.prompt[1].fields == (
        ("tool_calls", [{"type": "function", "id": "c", "function": {"name": "w9", "arguments": {"x": 1}}}]),
    )
    assert found.prompt[2] == Message("tool", "", (("tool_call_id", "c"),))
    assert (
        first(jsonl, answer(tool_calls=[call({"x": 1})])).fields
        == first(jsonl, answer(tool_calls=[call('{"x": 1}')])).fields
    )


def test_tools_may_be_a_text_of_json_and_nulls_that_fill_a_table_go(jsonl: Write) -> None:
    filled = {"type": "function", "function": {"name": "w9", "description": None, "strict": None}}
    for tools in ([filled], json.dumps([filled])):
        assert first(jsonl, answer(), tools=tools).tools == ({"type": "function", "function": DESCRIBED},)


def test_a_turn_of_weight_0_is_read_alone_and_what_follows_the_last_target_is_left_out(jsonl: Write) -> None:
    found = first(jsonl, answer(weight=0), USER, answer(weight=1), USER, answer(weight=0))
    assert (found.answer, len(found.prompt), found.unlearnt) == ("w2", 3, (1, 5))
    with pytest.raises(DataError, match="row 1: weight is 0 for each of the assistant's turns"):
        first(jsonl, answer(weight=0))


def test_a_text_in_parts_and_a_developer_are_understood(jsonl: Write) -> None:
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    found = first(jsonl, {"role": "developer", "content": parts}, answer())
    assert found.prompt[1] == Message("system", "w1 w2")


@pytest.mark.parametrize(
    ("turn", "row", "said"),
    [
        ({"weight": 0.5}, {}, r"turn 2: weight=0.5 must be 0 or 1"),
        ({"content": None}, {}, r"content is null"),
        ({"content": [{"type": "image_url"}]}, {}, r"content has a part that is not of type text"),
        ({"tool_calls": "w9"}, {}, r"turn 2: tool_calls must be a list"),
        ({"tool_calls": [{"name": "w9"}]}, {}, r"turn 2: each of tool_calls must have a function with name"),
        ({"tool_calls": [call("{")]}, {}, r"turn 2: the arguments of w9 must be valid JSON"),
        ({"tool_calls": [call({"x": None})]}, {}, r"turn 2: the arguments of w9 have a null"),
        ({"tool_calls": [call(speed=1)]}, {}, r"turn 2: tool_calls: 'speed' of a function is not known"),
        ({"name": "\ud83d"}, {}, r"turn 2: 'name' is not valid Unicode"),
        ({}, {"tools": "w9"}, r"tools must be valid JSON"),
        ({}, {"tools": {"w9": 1}}, r"tools must be a list"),
        ({}, {"tools": [{"type": "retrieval"}]}, r"each of tools must be"),
        (
            {},
            {"tools": [{"type": "function"} | {"function": {"name": "w9", "parameters": "x"}}]},
            r"tools: the parameters of w9",
        ),
        ({}, {"documents": [{"text": "w1"}]}, r"the column 'documents' is not trained on"),
        ({}, {"functions": [{"name": "w1"}]}, r"the column 'functions' is not trained on"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    jsonl: Write, turn: dict[str, Any], row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=f"row 1: {said}"):
        first(jsonl, answer(**turn), **row)


def test_calls_are_the_assistant_s_and_weights_too(jsonl: Write) -> None:
    for turn, said in (
        ({**USER, "tool_calls": [call()]}, "turn 2: tool_calls are"),
        ({**USER, "weight": 1}, "turn 2: wei"),
    ):
        with pytest.raises(DataError, match=said):
            first(jsonl, turn, answer())
