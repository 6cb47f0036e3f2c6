"""The engine against generate(), against itself without adapters, and against itself with more of them.

Ratios of one run on an idle machine:

    python benchmarks/serve.py [--rounds 3] [--only generate rows resident load]

generate   the engine without adapters against transformers' generate(), left-padded, 16 rows x 32 tokens (bar 2.0)
rows       64 rows with 1, 8 and 64 distinct adapters against none, on q,v (bar 0.9) and on all layers (bar 0.68)
resident   64 rows with 10, 1,000 and 10,000 resident adapters (bar: within 5 %)
load       a request of an adapter that is not resident: time added to it (bar: p99 10 ms) and to others (2 ms)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from statistics import median
from time import monotonic, sleep

import numpy as np
import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.model.load import Base, load_base
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

PROMPT, TOKENS, NUM_LOADS = 16, 32, 200
QV, ALL = ("q_proj", "v_proj"), "all-linear"


def main() -> None:
    """Runs the parts that were asked for."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = args.parse_args()
    base = load_base(given.model)
    base.model.eval()
    print(f"{torch.get_num_threads()} threads, {given.model}, medians of {given.rounds} rounds")
    for part in given.only:
        PARTS[part](base, given.rounds)


def prompts(base: Base, num_rows: int) -> list[list[int]]:
    """Random tokens, the same at every call."""
    draw = np.random.RandomState(0)
    return [draw.randint(100, base.model.config.vocab_size - 100, PROMPT).tolist() for _ in range(num_rows)]


def published(base: Base, registry: Registry, targets: str | Sequence[str], num: int) -> list[AdapterRef]:
    """So many adapters of rank 256 with small random numbers."""
    spec = AdapterSpec(rank=256, targets=targets, seed=0)
    bank = inject(base.model, spec)
    fresh = extract(bank, bank.first, base.model)
    eject(base.model)
    torch.manual_seed(0)
    made = (Adapter(spec, fresh.layout, _near(fresh.flat), fresh.basis_sha256, None, fresh.base) for _ in range(num))
    return [registry.put(f"bench/a{i}", adapter) for i, adapter in enumerate(made)]


def _near(flat: torch.Tensor) -> torch.Tensor:
    return flat + 0.01 * torch.randn_like(flat)


def answer_all(engine: Generator, rows: Sequence[list[int]], refs: Sequence[AdapterRef | None]) -> float:
    """Seconds until every row has its tokens."""
    greedy = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    started = monotonic()
    asked = [engine.answer(row, ref, greedy) for row, ref in zip(rows, refs, strict=True)]
    for one in asked:
        one.result(600)
    return monotonic() - started


def interleaved(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median seconds of each case, the cases in turn, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            seconds = case()
            if turn:
                times[name].append(seconds)
    return {name: median(several) for name, several in times.items()}


def part_generate(base: Base, rounds: int) -> None:
    """The engine, which is started anew for its turns since it holds the model, against generate()."""
    rows = prompts(base, 16)
    ids = torch.tensor(rows)

    def generate() -> float:
        started = monotonic()
        model = base.model
        model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False
        )
        return monotonic() - started

    def engine() -> float:
        with Generator(base.model, base.tokenizer, limits=Limits(prefix_bytes=0)) as served:
            answer_all(served, rows, [None] * len(rows))
            return answer_all(served, rows, [None] * len(rows))

    found = interleaved({"generate": generate, "engine": engine}, rounds)
    speed = {name: len(rows) * TOKENS / seconds for name, seconds in found.items()}
    print(
        f"generate {speed['generate']:.0f} tokens/s, engine {speed['engine']:.0f}: {ratio(found, 'generate', 'engine')}"
    )


def ratio(found: dict[str, float], of: str, to: str) -> str:
    """How many times as fast `to` is as `of`."""
    return f"{found[of] / found[to]:.3f} x"


def part_rows(base: Base, rounds: int) -> None:
    """64 rows, with none, 1, 8 and 64 adapters."""
    rows = prompts(base, 64)
    for name, targets in (("q,v", QV), ("all-linear", ALL)):
        with tempfile.TemporaryDirectory() as folder:
            registry = Registry(folder)
            refs = published(base, registry, targets, 64)
            with Generator(base.model, base.tokenizer, registry, Limits(prefix_bytes=0)) as engine:
                cases = {"none": _case(engine, rows, [None])}
                for distinct in (1, 8, 64):
                    cases[str(distinct)] = _case(engine, rows, refs[:distinct])
                found = interleaved(cases, rounds)
        print(f"{name}: none {64 * TOKENS / found['none']:.0f} tokens/s; " + _against(found, "none"))


def _case(engine: Generator, rows: Sequence[list[int]], refs: Sequence[AdapterRef | None]) -> Callable[[], float]:
    chosen = [refs[i % len(refs)] for i in range(len(rows))]
    return lambda: answer_all(engine, rows, chosen)


def _against(found: dict[str, float], first: str) -> str:
    return ", ".join(f"{name}: {ratio(found, first, name)}" for name in found if name != first)


def part_resident(base: Base, rounds: int) -> None:
    """64 rows over as many resident adapters as there are."""
    rows = prompts(base, 64)
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        refs = published(base, registry, QV, 10_000)
        with Generator(base.model, base.tokenizer, registry, Limits(prefix_bytes=0, num_slots=10_000)) as engine:
            found = {}
            for num in (10, 1_000, 10_000):
                for ref in refs[:num]:
                    engine.preload(ref)
                chosen = [refs[i * num // 64 % num] for i in range(64)]
                found[str(num)] = interleaved({"": lambda c=chosen: answer_all(engine, rows, c)}, rounds)[""]  # type: ignore[misc]
            held = len(engine.stats().resident)
    print(f"{held} resident at the end; against 10: {_against(found, '10')}")


def part_load(base: Base, rounds: int) -> None:
    """First tokens of resident and of new adapters in turn, alone and beside eight rows that go on, and their gaps."""
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        refs = published(base, registry, QV, 2 * NUM_LOADS + 1)
        with Generator(base.model, base.tokenizer, registry, Limits(prefix_bytes=0)) as engine:
            engine.preload(refs[-1])
            for num, cold in ((0, refs[:NUM_LOADS]), (8, refs[NUM_LOADS:-1])):
                print(f"beside {num} rows: " + _loads(engine, prompts(base, num + 1), refs[-1], cold))


def _loads(engine: Generator, rows: Sequence[list[int]], warm: AdapterRef, cold: Sequence[AdapterRef]) -> str:
    ticks: list[float] = []
    on_output = lambda output: ticks.append(monotonic()) if output.tokens else None  # noqa: E731
    endless = SamplingParams(max_tokens=engine.max_context - PROMPT, ignore_eos=True)
    others = [
        engine.submit(Request(row, None, endless, on_output if i == 0 else _ignore)) for i, row in enumerate(rows[1:])
    ]
    draw, found = np.random.RandomState(0), {"resident": ([], []), "new": ([], [])}  # type: ignore[var-annotated]
    for ref in cold:
        for (firsts, gaps), which in zip(found.values(), (warm, ref), strict=True):
            sleep(float(draw.uniform(0.0, 0.1)))
            began, seen = monotonic(), max(len(ticks) - 1, 0)
            engine.answer(rows[0], which, SamplingParams(max_tokens=1)).result(60)
            firsts.append(monotonic() - began)
            gaps.append(max(np.diff(ticks[seen:]), default=0.0))
    for other in others:
        engine.cancel(other)
    parts = []
    for i, name in enumerate(("first token", "largest gap of the others")):
        at = {kind: 1000 * np.quantile(times[i], (0.5, 0.99)) for kind, times in found.items()}
        parts.append(
            f"{name} {at['resident'][0]:.1f} ms resident, p99 {at['resident'][1]:.1f}; "
            f"a load adds {at['new'][0] - at['resident'][0]:.2f}, to the p99 {at['new'][1] - at['resident'][1]:.2f}"
        )
    return "; ".join(parts if others else parts[:1])


def _ignore(output: RequestOutput) -> None:
    pass


PARTS = {"generate": part_generate, "rows": part_rows, "resident": part_resident, "load": part_load}

if __name__ == "__main__":
    main()
