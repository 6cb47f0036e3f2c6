"""/v1/responses through the official client: the same answers as a chat's, in its own words."""

import json
from typing import Any

import openai
import pytest
from tiny_server import GREEDY, HELLO, Served

from polyvera.server.routes import completions

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"]}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
ASKED: dict[str, Any] = {"model": "acme/one", "input": "the true thing", "temperature": 0, "max_output_tokens": 8}


def test_a_response_is_what_a_chat_answers_whole_and_streamed(at: Served) -> None:
    client = at.openai()
    chat = client.chat.completions.create(model="acme/one", messages=HELLO, **GREEDY)
    whole = client.responses.create(**ASKED, store=True)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    assert whole.usage.input_tokens == chat.usage.prompt_tokens and whole.model == "acme/one@1"
    events = list(client.responses.create(**ASKED, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.total_tokens == whole.usage.total_tokens


def test_the_client_reads_its_own_stream(at: Served) -> None:
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["a", "b"]}}}
    with at.openai().responses.stream(**ASKED, text=form) as stream:
        assert list(stream)[-1].type == "response.completed"
        assert stream.get_final_response().output_text in ('"a"', '"b"')


def test_instructions_and_earlier_items_are_messages(at: Served) -> None:
    client = at.openai()
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "the "}, {"type": "input_text", "text": "true"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    found = client.responses.create(**ASKED | {"input": items, "instructions": "Be."})
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "the true"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    chat = client.chat.completions.create(model="acme/one", messages=messages, **GREEDY)
    assert found.output_text == chat.choices[0].message.content
    again = [items[0], *(item.model_dump() for item in found.output)]  # as a client goes on
    assert client.responses.create(**ASKED | {"input": again}).status in ("completed", "incomplete")


@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_forms(at: Served, stream: bool) -> None:
    client = at.openai()
    asked = {**ASKED, "max_output_tokens": 100, "tools": [TOOL], "tool_choice": "required"}
    if stream:
        with client.responses.stream(**asked, parallel_tool_calls=False) as events:
            found = events.get_final_response()
    else:
        found = client.responses.create(**asked, parallel_tool_calls=False)
    [item] = found.output
    assert item.type == "function_call" and item.name == "weather" and found.status == "completed"
    assert json.loads(item.arguments)["city"] in ("Bern", "Rome")
    form = {"format": {"type": "json_schema", "name": "x", "schema": {**SCHEMA, "additionalProperties": False}}}
    bound = client.responses.create(**ASKED | {"max_output_tokens": 60}, text=form)
    assert json.loads(bound.output_text)["city"] in ("Bern", "Rome")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": "the " * 500}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_done_is_refused_by_name(at: Served, given: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        at.openai().responses.create(**ASKED | given)
    assert caught.value.param == named


@pytest.mark.parametrize(
    ("path", "given", "param"),
    [
        ("/v1/chat/completions", {"messages": HELLO}, "messages"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1}, "messages"),
        ("/v1/responses", {"input": "Hello"}, "input"),
        ("/v1/completions", {"prompt": "Hello"}, "prompt"),
    ],
)
@pytest.mark.parametrize("tokens", [[], [10**6], [1] * 10**4])
def test_what_the_engine_refuses_of_a_prompt_is_told_by_the_clients_own_field(
    at: Served, monkeypatch: pytest.MonkeyPatch, path: str, given: dict[str, Any], param: str, tokens: list[int]
) -> None:
    async def read(*_: Any) -> list[int]:
        return tokens

    async def read_several(*_: Any) -> list[list[int]]:
        return [tokens]

    monkeypatch.setattr(completions, "read_chat", read)
    monkeypatch.setattr(completions, "_prompts", read_several)
    answer = at.http().post(path, json={"model": "acme/one", **given})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
