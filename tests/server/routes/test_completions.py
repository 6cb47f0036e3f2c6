"""Completions and chats through the official client and through plain HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tiny_serve import Solo, until
from tiny_server import GREEDY, HELLO, Served, prompt_ids, text_of


@pytest.mark.parametrize("model", ["base", "tiny", "acme/one", "acme/one@1", "base:acme/two@1", "tiny:globex/secret"])
def test_an_answer_is_the_solo_adapters(at: Served, solo: Solo, model: str) -> None:
    name = model.rpartition(":")[2].partition("@")[0]
    expected = text_of(at, solo.answers(at.adapters.get(name), prompt_ids(at, "the true thing"), 8))
    found = at.openai().completions.create(model=model, prompt="the true thing", **GREEDY)
    assert found.choices[0].text == expected
    assert found.model == ("tiny" if name in ("base", "tiny") else f"{name}@1")
    assert found.usage is not None and found.usage.prompt_tokens == len(prompt_ids(at, "the true thing"))


def test_a_chat_goes_through_the_template(at: Served, solo: Solo) -> None:
    expected = text_of(at, solo.answers(at.adapters["acme/one"], prompt_ids(at, "user: the true thing\n"), 8))
    parts = [{"type": "text", "text": "the true "}, {"type": "text", "text": "thing"}]
    for messages in (HELLO, [{"role": "user", "content": parts}]):
        found = at.openai().chat.completions.create(model="acme/one", messages=messages, **GREEDY)  # type: ignore[call-overload]
        assert found.choices[0].message.content == expected
        assert found.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_tells_what_the_whole_tells(at: Served, n: int) -> None:
    client = at.openai()
    asked = {"model": "acme/two", "messages": HELLO, "n": n, "seed": 7, "temperature": 1.0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    texts, finishes, usage = [""] * n, [""] * n, None
    for part in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and usage.completion_tokens == whole.usage.completion_tokens
    assert n == 1 or len(set(texts)) > 1, "siblings have seeds of their own"


def test_several_prompts_and_echo(at: Served) -> None:
    client = at.openai()
    found = client.completions.create(model="base", prompt=["the", "true"], n=2, echo=True, **GREEDY)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert [c.text[:3] for c in found.choices] == ["the", "the", "tru", "tru"]
    ids = prompt_ids(at, "the")
    by_ids = client.completions.create(model="base", prompt=[ids, ids], **GREEDY)
    assert {"the" + c.text for c in by_ids.choices} == {found.choices[0].text}
    streamed = client.completions.create(model="base", prompt="the", echo=True, stream=True, **GREEDY)
    assert "".join(p.choices[0].text for p in streamed) == found.choices[0].text


def test_logprobs_in_both_shapes(at: Served) -> None:
    client = at.openai()
    chat = client.chat.completions.create(
        model="base", messages=HELLO, logprobs=True, top_logprobs=3, **GREEDY
    ).choices[0]
    assert chat.logprobs is not None and chat.logprobs.content is not None
    for one in chat.logprobs.content:
        assert len(one.top_logprobs) == 3 and one.logprob == max(t.logprob for t in one.top_logprobs) < 0
    text = client.completions.create(model="base", prompt="user: the true thing\n", logprobs=2, **GREEDY).choices[0]
    assert text.logprobs is not None and text.logprobs.token_logprobs is not None
    assert text.logprobs.token_logprobs == pytest.approx([t.logprob for t in chat.logprobs.content], abs=1e-5)
    assert text.logprobs.text_offset is not None and text.logprobs.text_offset[0] == 0


def test_an_answer_follows_a_schema(at: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    found = at.openai().chat.completions.create(
        model="acme/one", messages=HELLO, response_format=form, temperature=1, seed=1, max_tokens=60
    )  # type: ignore[call-overload]
    assert json.loads(found.choices[0].message.content)["a"] in ("x", "y")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "for the answer"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "the " * 5000}]}, "context"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"model": 3}, "model"),
    ],
)
def test_what_cannot_be_is_refused_by_name(at: Served, change: dict[str, object], named: str) -> None:
    answer = at.http().post("/v1/chat/completions", json={"model": "base", "messages": HELLO, **change})
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert named in error["message"] and error["type"] == "invalid_request_error"


def test_what_changes_nothing_is_taken(at: Served) -> None:
    body = {"model": "base", "messages": HELLO, "user": "u", "metadata": {"a": "b"}, "tools": None, **GREEDY}
    assert at.http().post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "model",
    ["nope", "acme/nope", "acme/one@9", "acme/one@prod", "../../etc/passwd", "acme/one@1@2", "", "a" * 300, "\x00"],
)
def test_an_unknown_model_is_not_found(at: Served, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        at.openai().completions.create(model=model, prompt="x")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_strict_object_has_no_other_keys_and_one_of_is_taken(at: Served) -> None:
    def form(schema: dict[str, object], *, strict: bool = True) -> dict[str, object]:
        return {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}

    comma = at.engine.tokenizer(",").input_ids[-1]
    one = {"type": "object", "properties": {"v": {"enum": ["a"]}}, "required": ["v"]}
    body = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 40, "logit_bias": {str(comma): 100}}
    answer = at.http().post("/v1/chat/completions", json={**body, "response_format": form(one)})
    assert answer.json()["choices"][0]["message"]["content"] == '{"v": "a"}'
    either = form({"oneOf": [{"type": "integer"}, {"type": "number"}]})
    assert at.http().post("/v1/chat/completions", json={**body, "response_format": either}).status_code == 200


@pytest.mark.parametrize(
    ("path", "asked", "first"),
    [
        ("chat/completions", {"messages": HELLO}, '"role": "assistant", "content": ""'),
        ("completions", {"prompt": "x"}, ": ping"),
    ],
)
def test_a_stream_says_at_once_that_it_was_taken_on(
    at: Served, path: str, asked: dict[str, object], first: str
) -> None:
    busy = {"model": "acme/one", "prompt": "x", "max_tokens": 150, "ignore_eos": True, "n": 64, "temperature": 1}
    with ThreadPoolExecutor(1) as pool, at.http() as http:
        rows = pool.submit(lambda: at.http().post("/v1/completions", json=busy))
        until(lambda: at.engine.stats().waiting > 8)
        with http.stream(
            "POST", f"/v1/{path}", json={"model": "acme/two", **asked, **GREEDY, "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            assert first in next(lines) and not rows.done()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert rows.result().status_code == 200
