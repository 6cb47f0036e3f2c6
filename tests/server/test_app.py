"""The API through the official client and through plain HTTP."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from tiny_serve import Solo, assert_nothing_is_left, until
from tiny_server import GREEDY, Served, make_base, served

from polyvera.store.file.codec import encode
from polyvera.store.peft import export_peft

HELLO = [{"role": "user", "content": "the true thing"}]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, loras: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), lora_root=loras) as found:
        yield found
        assert_nothing_is_left(found.engine)


@pytest.fixture(scope="module")
def solo() -> Solo:
    return Solo(make_base())


def prompt_ids(at: Served, text: str) -> list[int]:
    return list(at.engine.tokenizer(text).input_ids)


def text_of(at: Served, ids: list[int]) -> str:
    return str(at.engine.tokenizer.decode(ids, skip_special_tokens=True))


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
        ({"max_tokens": 10**9}, "max_tokens"),
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


def test_models_have_parents(at: Served) -> None:
    found = {model.id: model for model in at.openai().models.list()}
    assert set(at.adapters) | {"tiny"} <= set(found)
    assert found["acme/one"].parent == "tiny" and not hasattr(found["tiny"], "parent")  # type: ignore[attr-defined]
    assert at.openai().models.retrieve("acme/one@1").id == "acme/one@1"


def test_publish_alias_answer_and_remove(at: Served, solo: Solo) -> None:
    http, name = at.http(), "acme/fresh"
    adapter = at.adapters["globex/secret"]
    put = http.put(f"/v1/adapters/{name}", params={"alias": "prod"}, content=encode(adapter))
    assert put.status_code == 201 and put.json()["id"] == f"{name}@1" and put.json()["aliases"] == {"prod": 1}
    expected = text_of(at, solo.answers(adapter, prompt_ids(at, "the"), 8))
    ask = {"prompt": "the", **GREEDY}
    assert at.openai().completions.create(model=f"{name}@prod", **ask).choices[0].text == expected
    http.put(f"/v1/adapters/{name}", content=encode(at.adapters["acme/one"]))
    moved = http.post("/v1/aliases", json={"name": name, "alias": "prod", "version": 2})
    assert moved.json() == {"id": f"{name}@prod", "root": f"{name}@2"}
    other = text_of(at, solo.answers(at.adapters["acme/one"], prompt_ids(at, "the"), 8))
    assert at.openai().completions.create(model=f"{name}@prod", **ask).choices[0].text == other
    assert http.delete(f"/v1/adapters/{name}").status_code == 400, "which version?"
    assert http.delete(f"/v1/adapters/{name}@1").status_code == 200
    assert http.get(f"/v1/adapters/{name}@1").status_code == 404
    until(lambda: f"{name}@1" not in {one["adapter"] for one in http.get("/v1/live").json()["resident"]})


def test_a_malformed_adapter_is_refused(at: Served) -> None:
    good = encode(at.adapters["acme/one"])
    flipped = good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    other = encode(replace(at.adapters["acme/one"], base="0" * 16 + "-" + "1" * 16))
    for bad in (b"", b"x" * 200, good[:-9], flipped, other):
        answer = at.http().put("/v1/adapters/acme/bad", content=bad)
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid_adapter"
    assert at.http().get("/v1/adapters/acme/bad").status_code == 404
    assert at.http().put("/v1/adapters/..%2f..%2fetc", content=good).status_code == 400


def test_vllms_two_routes(at: Served, loras: Path, tmp_path: Path) -> None:
    http, ask = at.http(), {"prompt": "the", **GREEDY}
    export_peft(at.adapters["acme/one"], loras / "peft")
    (loras / "file.safetensors").write_bytes(encode(at.adapters["acme/two"]))
    (loras / "link").symlink_to(tmp_path)
    for path in (str(tmp_path), "../store", "link", "/etc"):
        body = {"lora_name": "acme/loaded", "lora_path": path}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 403, "outside of the root"
    body = {"lora_name": "acme/loaded", "lora_path": "peft"}
    for path, source in (("peft", "acme/one"), (str(loras / "file.safetensors"), "acme/two")):
        loaded = http.post("/v1/load_lora_adapter", json={**body, "lora_path": path, "load_inplace": True})
        assert loaded.text == "Success: LoRA adapter 'acme/loaded' added successfully."
        found = at.openai().completions.create(model="acme/loaded", **ask).choices[0].text
        assert found == at.openai().completions.create(model=source, **ask).choices[0].text
    again = http.post("/v1/load_lora_adapter", json=body)
    assert again.status_code == 400 and "already been loaded" in again.json()["error"]["message"]
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/loaded"})
    assert gone.text == "Success: LoRA adapter 'acme/loaded' removed successfully."
    assert http.get("/v1/models/acme/loaded").status_code == 404
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/loaded"}).status_code == 404
    assert http.post("/v1/load_lora_adapter", json=body).status_code == 200, "put back into service"
    assert (
        http.post("/v1/load_lora_adapter", json={**body, "lora_name": "acme/no", "lora_path": "no"}).status_code == 404
    )


def test_tokens_there_and_back(at: Served) -> None:
    http = at.http()
    ids = http.post("/tokenize", json={"prompt": "the true thing"}).json()
    assert ids["tokens"] == prompt_ids(at, "the true thing") and ids["count"] == len(ids["tokens"])
    assert http.post("/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "the true thing"}
    chat = http.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
    assert chat == prompt_ids(at, "user: the true thing\n")
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "x", "model": "nope"}).status_code == 404


def test_health_version_live_and_metrics(at: Served) -> None:
    http = at.http()
    assert [http.get(path).status_code for path in ("/health", "/ready", "/version")] == [200, 200, 200]
    live = http.get("/v1/live").json()
    assert live["max_rows"] == 8 and live["hidden_resident"] == 0 and live["totals"]["steps"] > 0
    text = http.get("/metrics").text
    for name in ("running", "waiting", "resident_adapters", "time_to_first_token_seconds_count", "engine_hits_total"):
        assert f"polyvera_{name}" in text
    assert 'polyvera_tokens_total{kind="answer",tenant=""}' in text


def test_an_encoders_routes_say_what_runs(at: Served) -> None:
    answer = at.http().post("/v1/embeddings", json={"model": "base", "input": "x"})
    assert answer.status_code == 400 and "encoder" in answer.json()["error"]["message"]


def test_every_answer_has_an_id_and_unknown_routes_the_shape(at: Served) -> None:
    http = at.http()
    for answer in (http.get("/nope"), http.put("/v1/models"), http.post("/v1/completions", content=b"{", headers=JSON)):
        assert answer.status_code in (400, 404, 405) and "message" in answer.json()["error"]
        assert len(answer.headers["x-request-id"]) == 32
    assert http.post("/v1/completions", content=base64.b64encode(b"x")).status_code == 415
