"""`vllm serve` over HTTP, in processes of its own: adapters by name from a store, loaded and unloaded while it runs."""

from __future__ import annotations

import subprocess

import pytest
from strong_adapters import PROMPTS, answers, draw
from vllm_server import START_S, ask, command, environment, first_layers, free_port, serving, text

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.peft import export_peft
from polyvera.store.registry import Registry

pytest.importorskip("vllm.lora.request", reason="vLLM has an environment of its own: scripts/test-vllm")

SPEC = AdapterSpec("vera", rank=64, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def base(folder):
    return first_layers(folder)


@pytest.fixture(scope="module")
def store(base, tmp_path_factory):
    """acme@1 and acme@2, of which acme@prod is the first, and team/other@1."""
    registry = Registry(tmp_path_factory.mktemp("store"))
    registry.put("acme", draw(base, SPEC, 1), alias="prod")
    registry.put("acme", draw(base, SPEC, 2))
    registry.put("team/other", draw(base, SPEC, 3))
    return registry


@pytest.fixture(scope="module")
def client(folder, store, tmp_path_factory):
    env = environment(POLYVERA_STORE=store.url, POLYVERA_RANK="64")
    with serving(folder, tmp_path_factory.mktemp("log") / "server.log", env, "--enforce-eager") as client:
        yield client


@pytest.fixture(scope="module")
def said(base, folder):
    """What transformers says with an adapter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPTS[0]).input_ids
    return lambda adapter: tokenizer.decode(answers(base, adapter, [prompt])[0])


def test_a_name_in_a_request_finds_the_adapter(client, store, said):
    for name, version in (
        ("acme@1", "acme@1"),
        ("acme@prod", "acme@1"),
        ("acme", "acme@2"),
        ("team/other", "team/other@1"),
    ):
        assert text(client, name) == said(store.get(version)) != said(None), name
    assert text(client, "base") == said(None)
    listed = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
    assert {"base", "acme@1", "acme@prod", "acme", "team/other"} <= set(listed)
    assert listed["acme@prod"]["parent"] == "base"
    assert listed["acme@prod"]["root"] == "polyvera://acme@1"


def test_what_is_published_later_answers_without_a_restart(client, store, base, said):
    assert ask(client, "late").status_code == 404
    adapter = draw(base, SPEC, 9)
    store.put("late", adapter)
    assert text(client, "late") == said(adapter)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "acme@../1",
        "acme@0",
        "acme@99",
        "acme@nobody",
        "/etc",
        "a\0b",
        "CON",
        "x" * 5000,
        "polyvera://acme@1",
    ],
)
def test_hostile_and_unknown_names_are_not_found(client, name):
    assert ask(client, name).status_code == 404


def test_load_and_unload_endpoints(client, base, said, tmp_path):
    adapter = draw(base, SPEC, 11)
    export_peft(adapter, tmp_path / "peft")
    given = {"lora_name": "mine", "lora_path": str(tmp_path / "peft")}
    answer = client.post("/v1/load_lora_adapter", json=given)
    assert (answer.status_code, answer.text.strip('"')) == (200, "Success: LoRA adapter 'mine' added successfully.")
    assert text(client, "mine") == said(adapter)
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert ask(client, "mine").status_code == 404


def test_an_adapter_of_another_pair_is_refused_and_the_server_goes_on(client, base, said, tmp_path):
    other = AdapterSpec("vera", rank=64, targets=("q_proj", "v_proj"), seed=5)
    export_peft(draw(base, other, 12), tmp_path / "other")
    text(client, "acme@1")
    answer = client.post("/v1/load_lora_adapter", json={"lora_name": "o", "lora_path": str(tmp_path / "other")})
    assert answer.status_code == 500
    assert "share" in answer.json()["error"]["message"]
    assert text(client, "base") == said(None)


@pytest.mark.parametrize(
    ("env", "more", "why"),
    [
        ({"POLYVERA_METHODS": "verra"}, [], "did you mean 'vera'"),
        ({}, ["--fully-sharded-loras"], "fully_sharded_loras is not served"),
    ],
)
def test_what_cannot_be_stops_the_start(base, folder, env, more, why):
    started = subprocess.run(
        command(folder, free_port(), "--enforce-eager", *more),
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert started.returncode != 0
    assert why in started.stdout + started.stderr
