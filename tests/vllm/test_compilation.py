"""torch.compile inside vLLM: engines of vectors alone are compiled whole; graphs of other settings are kept apart."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from strong_adapters import PROMPTS, answers, draw
from vllm_server import environment, first_layers, serving, text

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.registry import Registry
from polyvera.vllm.compilation import hashing
from polyvera.vllm.settings import Settings

WIDE = {"in_max": 1536, "out_max": 1536}
SPECS = [
    AdapterSpec("vera", rank=64, targets="all-linear", exclude=("lm_head",)),
    AdapterSpec("vera", rank=64, targets=("q_proj", "v_proj"), **WIDE),
    AdapterSpec("dvora", rank=64, targets="all-linear", exclude=("lm_head",)),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")
def test_a_compiled_engine_says_what_transformers_says(tmp_path):
    """Rows of every kind of vectors and of none in the same batches."""
    pytest.importorskip("vllm.lora.request", reason="vLLM has an environment of its own: scripts/test-vllm")
    from transformers import AutoTokenizer

    base = first_layers(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    store, log = Registry(tmp_path / "store"), tmp_path / "server.log"
    names = {f"a{i}": draw(base, spec, 600 + i) for i, spec in enumerate(SPECS)} | {"base": None}
    for name, adapter in names.items():
        if adapter is not None:
            store.put(name, adapter)
    asked = [(list(names)[i % len(names)], prompt) for i, prompt in enumerate(PROMPTS)]
    env = environment(POLYVERA_STORE=store.url, POLYVERA_RANK="64", POLYVERA_METHODS="vera,dvora")
    with serving(tmp_path / "model", log, env) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: text(client, *one), asked))
    alone = [answers(base, names[name], [tokenizer(prompt).input_ids])[0] for name, prompt in asked]
    assert found == [tokenizer.decode(ids, skip_special_tokens=True) for ids in alone]
    assert "Warming up model for the compilation" in log.read_text()


def test_settings_are_part_of_a_graphs_name():
    named = [
        Settings("s", 64, vectors=True, gain=True, matrices=False),
        Settings("s", 64, vectors=True, gain=False, matrices=False),
        Settings("s", 64, vectors=True, gain=True, matrices=True),
        Settings("s", 32, vectors=True, gain=True, matrices=False),
        Settings("other", 64, vectors=True, gain=True, matrices=False),
    ]
    hashes = [hashing(lambda config, **_: f"hash of {config}", one)("a config", include_version=True) for one in named]
    assert len(set(hashes[:4])) == 4
    assert hashes[4] == hashes[0], "where the store lies changes no graph"
