"""Tools and other bound answers, as OpenAI's client asks for them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_serve import make_tokenizer
from tiny_server import HELLO, TEMPLATE, Served, fronted, make_base, prompt_ids, some_adapters

from polyvera.model.load import Base

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
BROKEN: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "nope"}}, "required": ["a"]},
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
ASKED: dict[str, Any] = {"model": "acme/one", "messages": HELLO, "temperature": 1, "seed": 3, "tools": [WEATHER, TIME]}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_calls_follow_their_schema_whole_and_streamed(at: Served, choice: Any) -> None:
    asked = {**ASKED, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 100}
    [whole] = at.openai().chat.completions.create(**asked).choices
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    [call] = whole.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.type == "function" and call.id.startswith("call_")
    assert call.function.name == "time" or (arguments["city"] in ("Bern", "Rome") and 1 <= arguments["days"] <= 9)
    assert choice == "required" or call.function.name == "weather"
    names, text, said, ends = [], "", "", []
    for part in at.openai().chat.completions.create(**asked, stream=True):
        [one] = part.choices
        said += one.delta.content or ""
        ends.append(one.finish_reason)
        for delta in one.delta.tool_calls or ():
            names += [delta.function.name] if delta.function.name else []
            text += delta.function.arguments
    assert (names, json.loads(text), said, ends[-1]) == ([call.function.name], arguments, "", "tool_calls")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a context that has room for what is said of tools."""
    tokenizer, model = make_tokenizer(), make_base(4096)
    tokenizer.chat_template = TEMPLATE
    with fronted(tmp_path_factory.mktemp("large"), Base(model, tokenizer), some_adapters(model)) as found:
        yield found


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_a_model_that_need_not_call_answers(large: Served, choice: str | None) -> None:
    answer = large.openai().chat.completions.create(**ASKED | {"tool_choice": choice, "max_tokens": 8})
    assert answer.choices[0].message.tool_calls is None and answer.choices[0].finish_reason in ("stop", "length")


def test_what_was_called_and_what_came_of_it_is_in_the_prompt(at: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "it rains"},
    ]
    with at.http() as http:
        ids = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    text = at.engine.tokenizer.decode(ids)
    assert '"arguments": {"city": "Rome"}' in text and "it rains" in text
    answer = at.openai().chat.completions.create(model="acme/one", messages=messages, max_tokens=2)
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[ab]{3}"}, lambda text: len(text) == 3 and set(text) <= {"a", "b"}),
        ({"grammar": 'root ::= "x" [0-9]'}, lambda text: text[0] == "x" and text[1:].isdigit()),
        ({"json": {"enum": [1, 2]}}, lambda text: json.loads(text) in (1, 2)),
    ],
)
def test_an_answer_is_of_the_form_that_was_asked_for(at: Served, given: dict[str, Any], right: Any) -> None:
    answer = at.openai().chat.completions.create(
        model="acme/one", messages=HELLO, max_tokens=20, extra_body={"structured_outputs": given}
    )
    assert right(answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    wrong = at.http().post(
        "/v1/completions", json={"model": "acme/one", "prompt": "x", "structured_outputs": {"regex": "(("}}
    )
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize("grammar", ["00", "r ::= 'a'", "root ::= " + "(" * 9999, "\n" * 60_000])
def test_a_grammar_that_cannot_be_read_is_refused_in_time(at: Served, grammar: str) -> None:
    asked = {"model": "acme/one", "prompt": "x", "structured_outputs": {"grammar": grammar}}
    wrong = at.http().post("/v1/completions", json=asked, timeout=60)
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize("num", [0, 1])
def test_the_log_probabilities_of_a_prompt(at: Served, num: int) -> None:
    client = at.openai()
    asked = {"model": "acme/one", "prompt": ["the true é", "thing"], "temperature": 0}
    found = client.completions.create(**asked, echo=True, logprobs=1, max_tokens=num)
    for choice, text in zip(found.choices, ("the true é", "thing"), strict=True):
        told, ids = choice.logprobs, prompt_ids(at, text)
        assert choice.text.startswith(text) and len(told.tokens) == len(ids) + num == len(told.token_logprobs)
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None and told.text_offset[0] == 0
        assert all(value < 0 for value in told.token_logprobs[1:])
        assert all(one in top for one, top in zip(told.tokens[1:], told.top_logprobs[1:], strict=True))
    whole = client.completions.create(**asked | {"prompt": "the true é"}, echo=True, logprobs=1, max_tokens=1)
    longer = client.completions.create(**asked | {"prompt": "the true"}, logprobs=1, max_tokens=1)
    assert (
        longer.choices[0].logprobs.top_logprobs[0].items()
        <= whole.choices[0].logprobs.top_logprobs[len(prompt_ids(at, "the true"))].items()
        | longer.choices[0].logprobs.top_logprobs[0].items()
    )
    parts = list(
        client.completions.create(**asked | {"prompt": "the"}, echo=True, logprobs=1, max_tokens=2, stream=True)
    )
    assert "".join(part.choices[0].text for part in parts).startswith("the")
    assert next(t for p in parts for t in (p.choices[0].logprobs.tokens if p.choices[0].logprobs else [])) == "the"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [None, "e"])
def test_the_bytes_of_a_chat_s_tokens_are_its_text(at: Served, stream: bool, stop: str | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["é", "🎉 there"]}}}
    for seed in range(3):
        asked = {"model": "acme/one", "messages": HELLO, "response_format": form, "temperature": 1, "seed": seed}
        asked |= {"logprobs": True, "max_tokens": 40, "stop": stop, "stream": stream}
        answer = at.openai().chat.completions.create(**asked)
        parts = [part.choices[0] for part in answer] if stream else [answer.choices[0]]
        said = [part.delta.content if stream else part.message.content for part in parts]
        told = [one for part in parts if part.logprobs for one in part.logprobs.content]
        assert b"".join(bytes(one.bytes) for one in told).decode() == "".join(one or "" for one in said) != ""


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "tools": [BROKEN], "tool_choice": "required"}),
        (
            "/v1/responses",
            {"input": "x", "tools": [{"type": "function", **BROKEN["function"]}], "tool_choice": "required"},
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 9,
                "messages": HELLO,
                "tools": [{"name": "f", "input_schema": BROKEN["function"]["parameters"]}],
                "tool_choice": {"type": "any"},
            },
        ),
    ],
)
def test_a_function_that_cannot_be_followed_is_told_of_the_tools(at: Served, path: str, given: dict[str, Any]) -> None:
    error = at.http().post(path, json={"model": "acme/one", **given}).json()["error"]
    assert error["param"] == "tools" and error["message"].endswith("cannot be followed: Invalid type: nope")


def test_a_schema_is_told_of_the_field_that_it_came_in(at: Served) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "nope"}}
    given = {"model": "acme/one", "input": "x", "text": {"format": form}}
    assert at.http().post("/v1/responses", json=given).json()["error"]["param"] == "text"
