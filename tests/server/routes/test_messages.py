"""/v1/messages: the same answers as a chat's, in Anthropic's words."""

import json
from typing import Any

import pytest
from tiny_server import GREEDY, HELLO, Served

from polyvera.server.routes.messages import _input

TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"]},
}
ASKED: dict[str, Any] = {"model": "acme/one", "messages": HELLO, "temperature": 0, "max_tokens": 8}


def post(at: Served, path: str = "/v1/messages", **given: Any) -> dict[str, Any]:
    answer = at.http().post(path, json={**ASKED, **given})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(at: Served, **given: Any) -> list[dict[str, Any]]:
    text = at.http().post("/v1/messages", json={**ASKED, **given, "stream": True}).text
    pairs = [block.split("\n", 1) for block in text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [one["type"] for one in found]
    return found


def chat(at: Served, messages: list[dict[str, Any]], **given: Any) -> str:
    found = at.openai().chat.completions.create(model="acme/one", messages=messages, **{**GREEDY, **given})
    return str(found.choices[0].message.content)


def test_a_message_is_what_a_chat_answers_whole_and_streamed(at: Served) -> None:
    whole = post(at)
    [block] = whole["content"]
    assert block == {"type": "text", "text": chat(at, HELLO)} and whole["role"] == "assistant"
    assert whole["stop_reason"] in ("max_tokens", "end_turn") and whole["usage"]["output_tokens"] > 0
    told = events(at)
    assert [told[0]["type"], told[-2]["type"], told[-1]["type"]] == ["message_start", "message_delta", "message_stop"]
    assert "".join(one["delta"]["text"] for one in told if one["type"] == "content_block_delta") == block["text"]
    assert told[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert told[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_system_and_what_came_of_tools_are_messages(at: Served) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "the true", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
    ]
    found = post(at, messages=turns, system=[{"type": "text", "text": "Be kind."}])
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
    same = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "the true"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
    ]
    assert found["content"][0]["text"] == chat(at, same)
    counted = at.http().post("/v1/messages/count_tokens", json={"model": "acme/one", "messages": HELLO}).json()
    usage = post(at)["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_tools_are_used(at: Served, choice: dict[str, Any]) -> None:
    given = {"tools": [TOOL], "tool_choice": {**choice, "disable_parallel_tool_use": True}, "max_tokens": 100}
    whole = post(at, **given)
    [block] = whole["content"]
    assert block["type"] == "tool_use" and block["input"]["city"] in ("Bern", "Rome")
    assert whole["stop_reason"] == "tool_use"
    told = events(at, **given)
    started = next(one for one in told if one["type"] == "content_block_start")["content_block"]
    assert (started["name"], started["input"]) == ("weather", {})
    text = "".join(one["delta"]["partial_json"] for one in told if one["type"] == "content_block_delta")
    assert json.loads(text) == block["input"]


def test_a_text_that_ends_it_is_told(at: Served) -> None:
    text = chat(at, HELLO, max_tokens=30)
    stop = text[len(text) // 2]
    whole = post(at, stop_sequences=["\ufdd1", stop], max_tokens=30)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", stop)
    assert events(at, stop_sequences=[stop], max_tokens=30)[-2]["delta"]["stop_sequence"] == stop


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"temperature": 2}, "temperature"),
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ],
)
def test_what_is_not_done_is_refused_by_name(at: Served, given: dict[str, Any], param: str) -> None:
    answer = at.http().post("/v1/messages", json={**ASKED, **given})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("given", "status", "kind"),
    [({"max_tokens": 0}, 400, "invalid_request_error"), ({"model": "x"}, 404, "not_found_error")],
)
def test_an_error_has_anthropics_shape(at: Served, given: dict[str, Any], status: int, kind: str) -> None:
    answer = at.http().post("/v1/messages", json={**ASKED, **given})
    assert answer.status_code == status and answer.json()["type"] == "error" and answer.json()["error"]["type"] == kind


@pytest.mark.parametrize("written", ["[1]", "NaN", '{"a": NaN}', "{", '"x"', '{"a": "\\ud83d"}'])
def test_arguments_that_are_no_object_are_an_empty_one(written: str) -> None:
    assert _input(written) == {} and _input('{"a": [1]}') == {"a": [1]}
