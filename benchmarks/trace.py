"""The S-LoRA trace against the engine, and against PEFT answering one request after another.

    python benchmarks/trace.py [--rate 1.5] [--duration 60] [--adapters 10 100 1000] [--output docs/results/serving]

Requests arrive with gamma-distributed gaps (cv), choose an adapter by a power law (alpha), and have prompts and answers
of uniformly drawn lengths. PEFT holds at most --peft-adapters LoRA adapters of rank 8 and is given the same requests
(adapter numbers taken modulo) back to back, so that its figure is the most that it could answer.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from serve import published

from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.model.load import Base, load_base
from polyvera.store.registry import Registry

SLO_S = 6.0
WARM_UP = 30
QV = ("q_proj", "v_proj")


@dataclass
class Asked:
    """One request of the trace. The times are seconds since its arrival."""

    arrival: float
    adapter: int
    prompt: list[int]
    num_tokens: int
    first: float = 0.0
    last: float = 0.0
    ended: Event = field(default_factory=Event)


def trace(args: argparse.Namespace, num_adapters: int, vocabulary: int) -> list[Asked]:
    """The requests, the same for the same arguments."""
    draw = np.random.RandomState(0)
    num = int(args.rate * args.duration)
    gaps = draw.gamma(1 / args.cv**2, args.cv**2 / args.rate, num)
    which = (draw.power(args.alpha, num) * num_adapters).astype(int)
    lengths = draw.randint(args.lengths[0], args.lengths[1], (num, 2))
    return [
        Asked(at, int(one), draw.randint(100, vocabulary - 100, inputs).tolist(), int(outputs))
        for at, one, (inputs, outputs) in zip(np.cumsum(gaps), which, lengths, strict=True)
    ]


def run_engine(
    base: Base, args: argparse.Namespace, num_adapters: int, most: int | None = None
) -> tuple[list[Asked], float]:
    """The trace in real time; all requests (the first `most`) and the seconds to the last answer."""
    asked = trace(args, num_adapters, base.model.config.vocab_size)[:most]
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        refs = published(base, registry, QV, num_adapters)
        with Generator(base.model, base.tokenizer, registry, Limits(num_slots=1000)) as engine:
            engine.answer(asked[0].prompt, None, SamplingParams(max_tokens=4, ignore_eos=True)).result(60)
            started = time.monotonic()
            for one in asked:
                time.sleep(max(0.0, started + one.arrival - time.monotonic()))
                params = SamplingParams(max_tokens=one.num_tokens, ignore_eos=True)
                engine.submit(Request(one.prompt, refs[one.adapter], params, _listener(one, started)))
            for one in asked:
                one.ended.wait(600)
            return asked, time.monotonic() - started


def _listener(one: Asked, started: float) -> Any:
    def on_output(output: RequestOutput) -> None:
        now = time.monotonic() - started - one.arrival
        one.first = one.first or (now if output.tokens else 0.0)
        if output.finish_reason is not None:
            one.last = now
            one.ended.set()

    return on_output


def run_peft(base: Base, args: argparse.Namespace) -> float:
    """Requests a second that PEFT answers one after another."""
    from peft import LoraConfig, get_peft_model

    num = args.peft_adapters
    model = get_peft_model(base.model, LoraConfig(r=8, target_modules=list(QV)), adapter_name="a0")
    for i in range(1, num):
        model.add_adapter(f"a{i}", LoraConfig(r=8, target_modules=list(QV)))
    model.eval()
    asked = trace(args, num, base.model.config.vocab_size)[: args.peft_requests]
    started = time.monotonic()
    for one in asked:
        model.set_adapter(f"a{one.adapter}")
        ids = torch.tensor([one.prompt])
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=one.num_tokens,
                max_new_tokens=one.num_tokens,
                do_sample=False,
            )
    return len(asked) / (time.monotonic() - started)


def summary(asked: list[Asked], seconds: float) -> dict[str, float]:
    """What the trace gave."""
    first = np.array([one.first for one in asked])
    return {
        "requests": len(asked),
        "requests_per_s": len(asked) / seconds,
        "tokens_per_s": sum(one.num_tokens for one in asked) / seconds,
        "ttft_p50_s": float(np.quantile(first, 0.5)),
        "ttft_p99_s": float(np.quantile(first, 0.99)),
        "slo_attainment": float((first < SLO_S).mean()),
        "latency_mean_s": float(np.mean([one.last for one in asked])),
    }


def draw(found: dict[int, list[Asked]], rows: list[dict[str, Any]], path: Path) -> None:
    """First-token times of each count, and how many requests a second were answered."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for num, asked in found.items():
        first = np.sort([one.first for one in asked])
        left.plot(first, np.arange(1, len(first) + 1) / len(first), label=f"{num:,} adapters")
    left.set(xlabel="time to first token, s", ylabel="share of requests", ylim=(0, 1.02))
    left.legend()
    names = [str(row["system"]) for row in rows]
    bars = right.barh(names, [row["requests_per_s"] for row in rows])
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.set(xlabel="requests a second")
    right.invert_yaxis()
    right.margins(x=0.15)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Runs the trace for every count, and prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapters", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--rate", type=float, default=1.5)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--cv", type=float, default=1.0)
    parser.add_argument("--alpha", type=float, default=1.0, help="1 is uniform, less is skewed")
    parser.add_argument("--lengths", nargs=2, type=int, default=[8, 128])
    parser.add_argument("--peft-adapters", type=int, default=10)
    parser.add_argument("--peft-requests", type=int, default=20)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    base = load_base(args.model)
    base.model.eval()
    found, rows = {}, []
    run_engine(base, args, args.adapters[0], WARM_UP)  # the first products of each shape take longer
    for num in args.adapters:
        found[num], seconds = run_engine(base, args, num)
        rows.append({"system": f"polyvera, {num:,}", **summary(found[num], seconds)})
        print(rows[-1], flush=True)
    rows.append({"system": f"PEFT in turn, {args.peft_adapters}", "requests_per_s": run_peft(base, args)})
    print(rows[-1])
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        with (args.output / "trace.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(found, rows, args.output / "trace.png")


if __name__ == "__main__":
    main()
