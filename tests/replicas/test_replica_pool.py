"""Two replicas as processes of their own: what they answer, and what becomes of a request when one of them dies."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import openai
import psutil
import pytest
import torch
from tiny_serve import LONGEST_WAIT, Heard, Solo, make_adapter, make_prompt, submit, until
from tiny_server import GREEDY, Served, make_base, some_adapters

from polyvera.adapter.basis import given_basis
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, Request, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import BusyError, ClosedError, ConflictError, SamplingError, ServeError, StoreError
from polyvera.replicas.replica_pool import ReplicaPool
from polyvera.server.address import Address
from polyvera.server.app import make_app
from polyvera.server.config import ServerConfig
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import ServerState
from polyvera.server.server import Server
from polyvera.store.file.codec import encode
from polyvera.store.peft import export_peft
from polyvera.store.registry import Registry

CONTEXT = 2048
LONG = SamplingParams(max_tokens=CONTEXT - 48, ignore_eos=True)
SHORTER = SamplingParams(max_tokens=300, ignore_eos=True)
LIMITS = Limits(max_rows=4, max_waiting=8, num_slots=3)


@pytest.fixture(scope="module")
def at(folder: Path) -> Iterator[Served]:
    settings = ServerConfig(base="tiny", lora_root=folder / "loras", drain_s=LONGEST_WAIT)
    metrics, state = Metrics(), ServerState()
    registry = Registry(folder / "store")
    with ReplicaPool(str(folder / "tiny"), registry, LIMITS, metrics.observe, num=2) as engine:
        server = Server(make_app(engine, settings, metrics, state), engine, settings, state, Address(port=0))
        thread = Thread(target=server.run, daemon=True)
        thread.start()
        yield Served(server.url, engine, registry, some_adapters(make_base(CONTEXT)), server, None)  # type: ignore[arg-type]
        last = submit(engine, [5], None, SHORTER)[1]
        server.stop()
        thread.join(LONGEST_WAIT)
        assert not thread.is_alive() and last.wait().finish_reason == LENGTH, "it answers what runs before it ends"
        with pytest.raises(ClosedError, match="stopping"):
            submit(engine, [5])
        pids = engine.pids
    assert not any(map(psutil.pid_exists, pids))


@pytest.fixture(scope="module")
def solo() -> Solo:
    return Solo(make_base(CONTEXT))


def test_a_mix_over_both_equals_each_adapter_alone(at: Served, solo: Solo) -> None:
    names = [None, *at.adapters]
    heard, expected = [], []
    for i in range(16):
        name, prompt = names[i % 4], make_prompt(i)
        ref = None if name is None else at.registry.resolve(name)
        expected.append(solo.answers(None if name is None else at.adapters[name], prompt, 12))
        heard.append(submit(at.engine, prompt, ref, SamplingParams(max_tokens=12), tenant="acme"))  # type: ignore[arg-type]
    for (request, one), answer in zip(heard, expected, strict=True):
        assert one.wait().error is None and one.ids == request.answer == answer
        assert request.finished >= request.first_token >= request.submitted
    num = sum(map(len, expected))
    until(lambda: at.engine.stats().totals["answer_tokens"] == sum(_each(at, "answer_tokens")) == num)
    assert len(_each(at, "answer_tokens")) == 2 and min(_each(at, "answer_tokens")) > 0


def test_an_adapter_of_a_made_basis_is_served_from_the_store(at: Served, solo: Solo) -> None:
    numbers = torch.Generator().manual_seed(3)
    basis = given_basis(torch.randn(4, 64, generator=numbers), torch.randn(64, 4, generator=numbers))
    made = make_adapter(make_base(CONTEXT), AdapterSpec(rank=4, init=basis.sha256, in_max=64, out_max=64), 1)
    ref, prompt = at.registry.put("acme/made", made), make_prompt(3)
    heard = [submit(at.engine, prompt, ref, SamplingParams(max_tokens=8), tenant=tenant)[1] for tenant in "abcdefgh"]
    assert all(one.wait().error is None for one in heard)
    assert all(one.ids == solo.answers(made, prompt, 8) for one in heard)
    with pytest.raises(ConflictError, match=r"adapters name it: acme/made@1; remove them first"):
        at.registry.bases.remove(basis.sha256)
    at.registry.remove("acme/made@1")
    at.registry.bases.remove(basis.sha256)


def _looked(at: Served) -> list:
    at.engine.stats()
    return at.engine._all()


def _each(at: Served, total: str) -> list[int]:
    return [replica.last_stats.totals[total] for replica in _looked(at)]


def test_the_like_goes_to_the_like_and_the_idle_help(at: Served) -> None:
    ref = at.registry.resolve("acme/one")
    until(lambda: not at.engine._num_open)

    def home(num: int, tenant: str) -> list[bool]:
        before = _each(at, "prompt_tokens")
        for _ in range(num):
            submit(at.engine, [7] * 40, ref, tenant=tenant, params=SamplingParams(max_tokens=2))[1].wait()
        until(lambda: sum(_each(at, "prompt_tokens")) == sum(before) + 40 * num)
        return [now > then for now, then in zip(_each(at, "prompt_tokens"), before, strict=True)]

    homes = {tenant: home(3, tenant) for tenant in "abcdefgh"}
    assert all(sum(home) == 1 for home in homes.values()), "one after the other, each tenant has its replica"
    assert len({tuple(home) for home in homes.values()}) == 2, "and not all have the same"
    running = [submit(at.engine, [7], ref, LONG, tenant="a") for _ in range(4)]
    assert sorted(replica.num_open for replica in at.engine._all()) == [2, 2]
    for request, _ in running:
        at.engine.cancel(request)
    assert all(heard.wait().finish_reason == CANCELLED for _, heard in running)


def test_the_front_has_shapes_and_no_weights(at: Served) -> None:
    assert all(p.is_meta for p in at.engine.model.parameters())
    assert at.engine.fingerprint == fingerprint(make_base(CONTEXT))
    assert at.engine.limits == replace(LIMITS, max_rows=8, max_context=CONTEXT, chunk=256)


def test_errors_keep_their_class(at: Served, folder: Path) -> None:
    engine, ref = at.engine, at.registry.resolve("acme/one")
    for prompt, params, said in (
        ([], SamplingParams(), "no tokens"),
        ([5] * (CONTEXT + 1), SamplingParams(), "context"),
        ([5], SamplingParams(stop_ids=(10**6,)), "not a token"),
        ([5], SamplingParams(schema="{"), "schema"),
        ([5], SamplingParams(stop=("\ud800",)), "cannot be sent"),
        ([5], SamplingParams(max_tokens=3.5), "cannot be sent"),
        ([5.5], SamplingParams(), "cannot be sent"),
    ):
        with pytest.raises(SamplingError, match=said):
            submit(engine, prompt, None, params)
    gone = replace(ref, name="acme/\u2603 of\n'none'", path=str(folder / "none"))
    ended = submit(engine, [5], gone, tenant="\u2603\0\n")[1].wait()
    assert ended.finish_reason == FAILED and isinstance(ended.error, StoreError)
    with pytest.raises(StoreError):
        engine.pin(gone)
    assert gone not in engine._pinned


def test_what_waits_is_bounded_for_all_and_cancelled(at: Served) -> None:
    until(lambda: not at.engine._num_open)
    held = [Request([5], None, LONG, Heard()) for _ in range(2 * 4 + 8)]
    homes = [(at.engine._place(request), request) for request in held]
    with pytest.raises(BusyError, match="16 requests"):
        submit(at.engine, [5])
    for replica, request in homes:
        del replica._reserved[request.number]
    asked = [submit(at.engine, [5], None, LONG) for _ in range(16)]
    for request, _ in asked:
        at.engine.cancel(request)
    assert {heard.wait().finish_reason for _, heard in asked} == {CANCELLED}
    until(lambda: at.engine.stats().running == () and not at.engine._num_open)


def test_a_listener_that_fails_is_cancelled(at: Served) -> None:
    told = []

    def on_output(output: object) -> None:
        told.append(output)
        raise ValueError("deaf")

    at.engine.submit(Request([5], None, LONG, on_output))
    until(lambda: told and told[-1].finish_reason == CANCELLED)


def test_residents_of_all(at: Served) -> None:
    engine, ref = at.engine, at.registry.resolve("acme/two")

    def resident() -> dict:
        return {one.adapter: one for one in engine.stats().resident}

    engine.evict(ref)
    until(lambda: str(ref) not in resident())
    engine.pin(ref)
    both = resident()[str(ref)]
    assert both.is_pinned and all(
        str(ref) in {r.adapter for r in replica.last_stats.resident} for replica in _looked(at)
    )
    assert both.num_bytes == 2 * next(
        r.num_bytes for r in engine._all()[0].last_stats.resident if r.adapter == str(ref)
    )
    engine.unpin(ref)
    until(lambda: not resident()[str(ref)].is_pinned)
    engine.evict(ref)
    until(lambda: str(ref) not in resident())
    engine.preload(ref)
    assert not resident()[str(ref)].is_pinned


def test_the_official_client_through_one_port(at: Served, solo: Solo, folder: Path) -> None:
    client, http = at.openai(), at.http()
    ids = list(at.engine.tokenizer("the true thing").input_ids)
    for name in ("acme/one", "globex/secret"):
        expected = at.engine.tokenizer.decode(solo.answers(at.adapters[name], ids, 8), skip_special_tokens=True)
        ask = {"model": name, "prompt": "the true thing", **GREEDY}
        assert client.completions.create(**ask).choices[0].text == expected
        assert "".join(part.choices[0].text for part in client.completions.create(**ask, stream=True)) == expected
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="base", prompt="the " * CONTEXT, stream=True)
    put = http.put("/v1/adapters/acme/fresh", content=encode(at.adapters["acme/one"]))
    assert put.status_code == 201, "the front knows the fingerprint"
    wrong = replace(at.adapters["acme/one"], base="0" * 16 + "-" + "1" * 16)
    assert http.put("/v1/adapters/acme/wrong", content=encode(wrong)).status_code == 422
    (folder / "loras").mkdir()
    export_peft(at.adapters["acme/two"], folder / "loras" / "peft")
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "acme/loaded", "lora_path": "peft"})
    assert loaded.status_code == 200 and "acme/loaded@1" in str(http.get("/v1/live").json()["resident"])
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/loaded"}).status_code == 200
    assert http.delete("/v1/adapters/acme/fresh@1").status_code == 200


def test_a_schema_and_siblings(at: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    found = at.openai().chat.completions.create(
        model="acme/one",
        messages=[{"role": "user", "content": "the"}],
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        n=3,
        stop=["zz"],
        seed=2**63,
        logit_bias={"5": 1},
        max_tokens=60,
        logprobs=True,
        top_logprobs=2,
    )  # type: ignore[call-overload]
    assert {choice.message.content for choice in found.choices} == {'{"a": "x"}'}
    assert found.choices[2].logprobs.content[0].top_logprobs


def test_the_figures_are_of_all(at: Served) -> None:
    until(lambda: not at.engine._num_open)
    for name in ("steps", "answer_tokens"):
        until(lambda name=name: _value(at, f"engine_{name}_total") == sum(_each(at, name)) > 0)
    until(lambda: _value(at, "step_seconds_count") >= sum(_each(at, "steps")))
    assert _value(at, "load_seconds_count") > 0 and _value(at, "queue_seconds_count") > 0
    live = at.http().get("/v1/live").json()
    assert live["max_rows"] == 8 and live["num_slots"] == 6


def _value(at: Served, name: str) -> float:
    text = at.http().get("/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(f"polyvera_{name} ")).split()[1])


def test_a_client_that_goes_is_cancelled(at: Served) -> None:
    body = {"model": "base", "prompt": "the", "max_tokens": CONTEXT - 48, "ignore_eos": True, "stream": True}
    with at.http().stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
        assert at.engine._num_open == 1
    until(lambda: not at.engine._num_open)


def test_a_killed_replica_is_begun_anew_and_the_others_go_on(at: Served, solo: Solo) -> None:
    engine, pinned = at.engine, at.registry.resolve("globex/secret")
    engine.pin(pinned)
    pids, steps = engine.pids, engine.stats().totals["steps"]
    asked = [submit(engine, [9 + i], None, LONG)[1] for i in range(8)]
    until(lambda: all(one.outputs for one in asked))
    of_it = {id(request.on_output) for request in engine._all()[0]._open.values()}
    os.kill(pids[0], signal.SIGKILL)
    assert len(of_it) == 4
    ends = [(one, one.wait()) for one in asked]
    assert {id(one) for one, end in ends if end.finish_reason == FAILED} == of_it
    assert [end.finish_reason for _, end in ends].count(LENGTH) == 4, "the others' go on"
    problems = [end.error for _, end in ends if end.finish_reason == FAILED]
    assert all(isinstance(one, ClosedError) and "replica 0 has ended" in str(one) for one in problems)
    body = {"model": "base", "prompt": "the", **GREEDY}
    assert at.http().post("/v1/completions", json=body).status_code == 200, "others take what comes meanwhile"
    assert at.http().get("/health").status_code == 200
    until(lambda: engine.pids != pids and all(replica.is_accepting for replica in engine._all()))
    assert all(
        str(pinned) in {r.adapter for r in replica.last_stats.resident if r.is_pinned} for replica in _looked(at)
    )
    heard = [submit(engine, [5], pinned, SamplingParams(max_tokens=6))[1] for _ in range(4)]
    expected = solo.answers(at.adapters["globex/secret"], [5], 6)
    assert all(one.wait() and one.ids == expected for one in heard)
    assert engine.stats().totals["steps"] >= steps and engine.failed is None
    engine.unpin(pinned)


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    with pytest.raises(ServeError, match="T5ForConditionalGeneration is an encoder-decoder, which no engine serves"):
        ReplicaPool(str(tmp_path), num=2)
    with pytest.raises(ServeError, match="at least 1"):
        ReplicaPool(str(folder / "tiny"), num=0)
