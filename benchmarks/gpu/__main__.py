"""Everything that is measured on a GPU, in one run: python benchmarks/gpu [--tiny] [--minutes 7] [--only train ...]

Models are built from published shapes with random numbers: no weights and no network are needed. Each part prints its
rows as soon as it has them, and writes them to OUTPUT/gpu.json and OUTPUT/gpu.md; a part that fails is reported and the
next one goes on; none is begun after --minutes. --tiny is the dry run, on whatever device there is.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ceilings
import decoding
import fleets
import residency
import shapes
import torch
import training
from transformers import LlamaForCausalLM

Row = dict[str, Any]
FRAMES = 12  # lines of a failure that are shown


@dataclass
class Run:
    """One run: its device, sizes, and what was found so far."""

    device: torch.device
    tiny: bool
    output: Path
    ceilings: ceilings.Ceilings
    rows: list[Row] = field(default_factory=list)
    models: dict[str, LlamaForCausalLM] = field(default_factory=dict)

    def model(self, shape: str) -> LlamaForCausalLM:
        """The model of that shape, the only one in memory."""
        shape = "tiny" if self.tiny else shape
        if shape not in self.models:
            self.models.clear()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.models[shape] = shapes.build(shape, self.device, self.dtype)
        return self.models[shape]

    @property
    def dtype(self) -> torch.dtype:
        """bf16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def take(self, found: Iterable[Row]) -> None:
        """Prints rows and writes all of them."""
        for row in found:
            self.rows.append(row)
            print(_text(row), flush=True)
            (self.output / "gpu.json").write_text(
                json.dumps({"device": device_name(self.device), "rows": self.rows}, indent=1)
            )
            (self.output / "gpu.md").write_text(report(self))


def part_train(run: Run, shape: str) -> Iterator[Row]:
    """Training steps."""
    batch, rounds = ((2, 16), 1) if run.tiny else ((4 if shape == "8b" else 8, 512), 5)
    name = "tiny" if run.tiny else shape
    yield from training.rows(run.model(shape), name, run.ceilings, rounds, batch)


def part_fleet(run: Run, shape: str) -> Iterator[Row]:
    """A fleet of tenants."""
    num, steps, repeats = (4, 1, 1) if run.tiny else (32, 3, 2)
    yield fleets.row(run.model(shape), "tiny" if run.tiny else shape, num, steps, repeats)


def part_decode(run: Run, shape: str) -> Iterator[Row]:
    """Decode steps, hot loads, generate()."""
    counts, tokens, rounds = ((1, 4), 6, 1) if run.tiny else ((1, 64, 256), 48, 2)
    name, model = "tiny" if run.tiny else shape, run.model(shape)
    yield from decoding.rows(model, name, run.ceilings, counts, tokens, rounds)
    yield decoding.against_generate(model, name, 4 if run.tiny else 64, tokens, 1)


def part_resident(run: Run, shape: str) -> Iterator[Row]:
    """Memory of resident adapters."""
    yield residency.row(run.model(shape), "tiny" if run.tiny else shape, 50 if run.tiny else 10_000)


PARTS: dict[str, tuple[Callable[[Run, str], Iterator[Row]], str]] = {
    "decode-8b": (part_decode, "8b"),
    "train-8b": (part_train, "8b"),
    "fleet-8b": (part_fleet, "8b"),
    "resident-8b": (part_resident, "8b"),
    "train-1b": (part_train, "1b"),
    "fleet-1b": (part_fleet, "1b"),
    "decode-1b": (part_decode, "1b"),
}


def device_name(device: torch.device) -> str:
    """What is measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _text(row: Row) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v != "")


def report(run: Run) -> str:
    """The rows as Markdown."""
    top = run.ceilings
    lines = [
        f"{device_name(run.device)}, torch {torch.__version__}, {str(run.dtype).removeprefix('torch.')}; a copy moves "
        f"{top.bytes_per_s / 1e9:,.0f} GB/s, a product does {top.flops / 1e12:,.1f} TFLOP/s",
        "",
        "| what | figures | bar |",
        "| --- | --- | --- |",
    ]
    for row in run.rows:
        figures = {k: v for k, v in row.items() if k not in ("what", "bar")}
        lines.append(f"| {row['what']} | {_text(figures)} | {row.get('bar', '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, on whatever device there is")
    parser.add_argument("--minutes", type=float, default=7.0, help="no part is begun after so many")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args()
    if not (asked.tiny or torch.cuda.is_available()):
        parser.error("there is no CUDA device here: --tiny is the dry run")
    asked.output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    top = ceilings.measured(
        device, torch.bfloat16 if device.type == "cuda" else torch.float32, 128 if asked.tiny else 8192
    )
    run, failed = Run(device, asked.tiny, asked.output, top), 0
    print(report(run).splitlines()[0], flush=True)
    for name in asked.only:
        if time.monotonic() - started > 60 * asked.minutes:
            print(f"{name}: left out, {asked.minutes:g} minutes are over", flush=True)
            continue
        failed += not _ran(run, name)
        print(f"[{time.monotonic() - started:.0f} s] {name} is done", flush=True)
    sys.exit(1 if failed else 0)


def _ran(run: Run, name: str) -> bool:
    part, shape = PARTS[name]
    try:
        run.take(part(run, shape))
    except Exception:
        print(
            "".join(traceback.format_exc().splitlines(keepends=True)[-FRAMES:]), f"{name}: FAILED", sep="\n", flush=True
        )
        return False
    return True


if __name__ == "__main__":
    main()
