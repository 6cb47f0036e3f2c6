"""Rows that decode through static tensors answer as each alone: captured on a GPU, else called as they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import SERVED, built
from tiny_serve import (
    LONGEST_WAIT,
    Solo,
    all_of,
    assert_nothing_is_left,
    make_adapter,
    make_prompt,
    publish,
    submit,
    until,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.decode_graph import (
    PATIENCE,
    DecodeGraphs,
    DecodeInputs,
    DecodeToken,
    _Replay,
    num_padded,
)
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.generation.sampler import Scores
from polyvera.engine.limits import Limits

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]
LIMITS = Limits(max_rows=6, chunk=32, num_slots=4, decode_graphs=True, prefix_bytes=1 << 20)
every_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def greedy(num: int) -> SamplingParams:
    return SamplingParams(max_tokens=num)


def on(model: torch.nn.Module, device: str) -> Any:
    return copy.deepcopy(model).to(device)


@every_device
@pytest.mark.parametrize("name", METHODS)
def test_any_mix_of_a_method_and_the_base_answers_as_each_alone(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, name: str, device: str
) -> None:
    specs = [AdapterSpec(name, rank=4, targets="all-linear"), AdapterSpec(name, rank=3, seed=5, magnitude=True)]
    adapters = [make_adapter(llama, specs[seed % 2], seed) for seed in range(6)]
    registry, refs = publish(tmp_path, adapters)
    pairs = [(i, seed) for seed in range(2) for i in (None, *range(6))]
    with Generator(on(llama, device), tokenizer, registry, LIMITS) as engine:
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], greedy(12)) for i, s in pairs)
        assert engine.stats().totals["evictions"] > 0  # slots of before hold other adapters later
        assert_nothing_is_left(engine)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 12), (i, seed)


@every_device
@pytest.mark.parametrize("name", SERVED)
def test_models_of_many_families_decode_as_alone(name: str, tmp_path: Path, device: str, tokenizer: Any) -> None:
    model = built(name, SERVED[name])
    solo = Solo(model)
    adapters = [make_adapter(model, AdapterSpec(method, rank=4), 1) for method in ("vera", "lora")]
    registry, refs = publish(tmp_path, adapters)
    pairs = [(i, seed) for seed in range(2) for i in (0, None, 1)]
    with Generator(on(model, device), tokenizer, registry, LIMITS) as engine:
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], greedy(20)) for i, s in pairs)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 20)


@every_device
def test_unusual_rows_and_drawn_ones_choose_as_without_graphs(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, trained: list[Adapter], tmp_path: Path, device: str
) -> None:
    registry, refs = publish(tmp_path, trained[:3])
    wanted: list[dict[str, Any]] = [
        {"temperature": 1.3, "top_p": 0.9, "seed": 3},
        {"temperature": 0.7, "top_k": 5, "seed": 4},
        {"repetition_penalty": 1.4, "logprobs": 2},
        {"temperature": 1.1, "min_p": 0.05, "seed": 5, "bias": ((70, 3.0),)},
        {"schema": "{}"},
        {},
    ]
    found = []
    for graphs in (True, False):
        limits = Limits(max_rows=4, chunk=32, decode_graphs=graphs)
        with Generator(on(llama, device), tokenizer, registry, limits) as engine:
            params = [SamplingParams(max_tokens=16, **given) for given in wanted]
            answers = all_of(engine.answer(make_prompt(i), refs[i % 3], p) for i, p in enumerate(params))
            found.append([answer.ids for answer in answers])
    assert found[0] == found[1]


@every_device
def test_an_adapter_that_is_loaded_between_two_steps_is_used_in_the_next(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, device: str
) -> None:
    adapters = [make_adapter(llama, AdapterSpec(rank=4, targets="all-linear"), seed) for seed in range(4)]
    registry, refs = publish(tmp_path, adapters)
    prompt = make_prompt(1, 3, 3)
    with Generator(on(llama, device), tokenizer, registry, LIMITS) as engine:
        long, heard = submit(engine, prompt, refs[0], SamplingParams(max_tokens=100, ignore_eos=True))
        for i in (1, 2, 3, 1, 2):
            until(lambda: heard.ids)
            answer = engine.answer(prompt, refs[i], greedy(5)).result(LONGEST_WAIT)
            assert answer.ids == solo.answers(adapters[i], prompt, 5)
        engine.cancel(long)
        heard.wait()
        expected = solo.answers(adapters[0], prompt, 100, eos_token_id=10_000)
        assert heard.ids == expected[: len(heard.ids)]


def test_rows_are_padded_to_few_sizes() -> None:
    sizes = [num_padded(n, 130) for n in range(1, 131)]
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 130]
    assert all(size >= n for n, size in enumerate(sizes, 1)) and num_padded(0, 45) == 1 and num_padded(3, 3) == 3


def test_the_greatest_size_serves_until_another_is_asked_for_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))

    def forward(inputs: DecodeInputs, banks: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(inputs.ids[0], 20).float()

    captured: list[tuple[int, Any]] = []

    def capture(inputs: DecodeInputs, banks: Any) -> _Replay:
        captured.append((inputs.ids.shape[1], banks))
        return _Replay(lambda: None, Scores.of(forward(inputs, banks)))

    graphs: DecodeGraphs[str] = DecodeGraphs(forward, 8, 100, torch.device("cpu"), False)
    graphs.is_captured, graphs._capture = True, capture  # type: ignore[method-assign]
    tokens = [DecodeToken(i, 0, i, 0) for i in range(5)]
    for _ in range(PATIENCE):
        assert graphs(tokens[:1], (), 1).logits.shape == (1, 20)
    assert captured == [(8, ())]
    graphs(tokens[:1], (), 1)
    graphs(tokens[:3], (), 1)
    assert captured == [(8, ()), (1, ())]
    graphs(tokens[:3], ("bank",), 1)
    assert captured[2:] == [(8, ("bank",))]
    graphs(tokens[:1], (), 2)
    assert captured[3:] == [(8, ())]  # another state: all that was captured is gone


def test_rows_that_pad_are_of_the_base_and_write_where_nobody_reads() -> None:
    seen: list[DecodeInputs] = []

    def forward(inputs: DecodeInputs, banks: Any) -> torch.Tensor:
        seen.append(DecodeInputs(*(getattr(inputs, name).clone() for name in DecodeInputs.__slots__)))
        return torch.nn.functional.one_hot(inputs.ids[0] + 1, 20).float()

    graphs: DecodeGraphs[str] = DecodeGraphs(forward, 8, 100, torch.device("cpu"), False)
    scores = graphs([DecodeToken(7, 9, 2, 5), DecodeToken(3, 0, 4, 0), DecodeToken(2, 50, 5, 6)], ("bank",), 1)
    (inputs,) = seen
    assert inputs.ids.tolist() == [[7, 3, 2, 0]] and inputs.positions.tolist() == [[9, 0, 50, 0]]
    assert inputs.slots.tolist() == [[5, 0, 6, 0]] and inputs.rows.tolist() == [2, 4, 5, 0]
    assert inputs.slot_mapping.tolist() == [209, 400, 550, 99]
    assert scores.logits.shape == (3, 20) and scores.best[1].tolist() == [8, 4, 3]
