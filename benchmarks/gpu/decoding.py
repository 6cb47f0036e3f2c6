"""The engine's decode step with as many distinct adapters as rows, against none, and against generate()."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from threading import Event
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch
from ceilings import Ceilings, interleaved
from shapes import NAMES, make_tokenizer, num_matrix_params
from training import RANK, TARGETS
from transformers import LlamaForCausalLM

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

PROMPT = 32
NOISE = 0.01
Row = dict[str, Any]


@dataclass
class Ticks:
    """When each token of one answer came."""

    at: list[float] = field(default_factory=list)
    done: Event = field(default_factory=Event)
    error: Exception | None = None

    def take(self, output: RequestOutput) -> None:
        """Notes one output. Called in the engine's thread."""
        self.error = output.error
        self.at += [perf_counter()] * len(output.tokens)
        if output.finish_reason is not None:
            self.done.set()


def prompts(model: LlamaForCausalLM, num_rows: int) -> list[list[int]]:
    """Random tokens, the same at every call."""
    draw = np.random.RandomState(0)
    return [draw.randint(2, model.config.vocab_size, PROMPT).tolist() for _ in range(num_rows)]


def published(model: LlamaForCausalLM, registry: Registry, targets: Sequence[str], num: int) -> list[AdapterRef]:
    """So many adapters with small random numbers."""
    bank = inject(model, AdapterSpec("vera", rank=RANK, targets=targets))
    fresh = extract(bank, bank.first, model)
    eject(model)
    torch.manual_seed(0)
    made = (
        Adapter(
            fresh.spec,
            fresh.layout,
            fresh.flat + NOISE * torch.randn_like(fresh.flat),
            fresh.basis_sha256,
            None,
            fresh.base,
        )
        for _ in range(num)
    )
    return [registry.put(f"bench/a{i}", adapter) for i, adapter in enumerate(made)]


def step_s(engine: Generator, rows: Sequence[list[int]], refs: Sequence[AdapterRef | None], num_tokens: int) -> float:
    """The median seconds between two tokens while all rows decode."""
    greedy = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    answers = [Ticks() for _ in rows]
    for i, (row, ticks) in enumerate(zip(rows, answers, strict=True)):
        engine.submit(Request(row, refs[i % len(refs)], greedy, ticks.take))
    for ticks in answers:
        if not ticks.done.wait(60) or len(ticks.at) != num_tokens:
            raise RuntimeError(f"an answer has {len(ticks.at)} of {num_tokens} tokens: {ticks.error}")
    start, stop = max(t.at[0] for t in answers), min(t.at[-1] for t in answers)
    inside = [at for at in answers[0].at if start < at <= stop]
    return float(median(np.diff(inside)))


def rows(
    model: LlamaForCausalLM, shape: str, ceilings: Ceilings, counts: Sequence[int], num_tokens: int, rounds: int
) -> Iterator[Row]:
    """A row for each set of targets and number of rows."""
    limits = Limits(max_rows=max(counts), max_context=PROMPT + num_tokens, prefix_bytes=0)
    bars = {"q,v": 0.93, "all-linear": 0.85}
    for name, targets in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            registry = Registry(folder)
            refs = published(model, registry, targets, max(counts))
            with Generator(model, make_tokenizer(model), registry, limits) as engine:
                for ref in refs:
                    engine.preload(ref)
                for count in counts:
                    asked = prompts(model, count)
                    found = _against(engine, asked, refs[:count], num_tokens, rounds)
                    floor = ceilings.floor_s(*work_of(model, count))
                    yield {
                        "what": f"decode, {NAMES[shape]}, {name}, {count} rows, {count} adapters",
                        "none_ms": 1000 * found["none"],
                        "with_ms": 1000 * found["with"],
                        "none/with": found["none"] / found["with"],
                        "none of floor": floor / found["none"],
                        "bar": f"none/with >= {bars[name]}" if count == 64 else "",
                    }
                if name == "q,v":
                    yield hot_load(engine, prompts(model, 1)[0], refs, shape)


def _against(
    engine: Generator, asked: Sequence[list[int]], refs: Sequence[AdapterRef], num_tokens: int, rounds: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {"none": [], "with": []}
    for turn in range(rounds + 1):
        for name, chosen in (("none", [None]), ("with", refs)):
            seconds = step_s(engine, asked, chosen, num_tokens)
            if turn:
                times[name].append(seconds)
    return {name: median(several) for name, several in times.items()}


def hot_load(engine: Generator, prompt: list[int], refs: Sequence[AdapterRef], shape: str) -> Row:
    """The first token of an adapter that has to be read from the store, against one that is resident."""
    one = SamplingParams(max_tokens=1)
    times: dict[str, list[float]] = {"resident": [], "new": []}
    for ref in refs[: min(len(refs), 50)]:
        for name in ("resident", "new"):
            if name == "new":
                engine.evict(ref)
            started = monotonic()
            engine.answer(prompt, ref, one).result(60)
            times[name].append(monotonic() - started)
    found = {name: 1000 * median(several) for name, several in times.items()}
    return {"what": f"hot load, {NAMES[shape]}, q,v", "resident_ms": found["resident"], "new_ms": found["new"]}


def against_generate(model: LlamaForCausalLM, shape: str, num_rows: int, num_tokens: int, rounds: int) -> Row:
    """Whole answers of the engine without adapters, and of generate() in one padded batch."""
    asked = prompts(model, num_rows)
    ids = torch.tensor(asked, device=model.device)

    def generate() -> None:
        model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            do_sample=False,
        )

    theirs = interleaved({"generate": generate}, rounds, model.device)["generate"]
    limits = Limits(max_rows=num_rows, max_context=PROMPT + num_tokens, prefix_bytes=0)
    greedy = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    with Generator(model, make_tokenizer(model), limits=limits) as engine:

        def answer() -> None:
            for one in [engine.answer(row, None, greedy) for row in asked]:
                one.result(60)

        ours = interleaved({"engine": answer}, rounds, model.device)["engine"]
    return {
        "what": f"{num_rows} answers of {num_tokens} tokens, {NAMES[shape]}",
        "engine tokens/s": num_rows * num_tokens / ours,
        "generate tokens/s": num_rows * num_tokens / theirs,
        "engine/generate": theirs / ours,
        "bar": "engine/generate >= 3",
    }


def work_of(model: LlamaForCausalLM, num_rows: int) -> tuple[float, float]:
    """(bytes, operations) of one decode step of the base: every weight once, the keys and values of short contexts."""
    params = num_matrix_params(model)
    config = model.config
    pairs = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * PROMPT * num_rows
    return (params + pairs) * model.dtype.itemsize, 2 * params * num_rows
