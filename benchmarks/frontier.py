"""Score against stored bytes: intents with a frozen head, every row at its own best rate, in every stored dtype.

    python benchmarks/frontier.py BANKING77 [--arms ...] [--seeds 5] [--steps 100] [--output docs/results/frontier]

BANKING77 is a folder with train.jsonl and test.jsonl, rows of text and label; the first --labels of them by name are
the task. MiniLM, the head made of the labels' names, so all that is stored are the numbers that an arm trains. Of each
arm and seed all rates train as slots of one bank, an edge is extended, and the one of the lowest validation loss is
scored, as it is stored in every dtype. Seeds differ in the basis, the order of rows and the validation split.
Lines are added to the output as they come, and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch

from polyvera import Recipe, load_base
from polyvera.compare.bracket import beyond
from polyvera.compare.interval import interval
from polyvera.data.tables import Table, read
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.load import Base
from polyvera.store.file.codec import encode, read_header
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.train.fleet.journal import Outcome
from polyvera.train.fleet.one_process import train_here
from polyvera.train.rounding import rounded
from polyvera.train.tenants import Tenant, TenantRows

LATE = r".*encoder\.layer\.[345]\.attention\.self\.(query|value)"
LATE_VALUES = r".*encoder\.layer\.[345]\.attention\.self\.value"
FACTORS, EXTENSIONS = (0.25, 0.5, 1.0, 2.0, 4.0), 3
REFERENCE = "lora r8"
ARMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        REFERENCE: {"method": "lora", "rank": 8, "targets": LATE},
        "vera r256": {"method": "vera", "rank": 256, "targets": LATE},
        "vera r64": {"method": "vera", "rank": 64, "targets": LATE},
        "vera v r256": {"method": "vera", "rank": 256, "targets": LATE_VALUES},
        "vera hash 1800": {"method": "vera", "rank": 256, "targets": LATE, "hash_size": 1800},
        "vera hash 960": {"method": "vera", "rank": 256, "targets": LATE, "hash_size": 960},
        "lora hash 3600": {"method": "lora", "rank": 4, "targets": LATE, "hash_size": 3600},
        "lora hash 1800": {"method": "lora", "rank": 4, "targets": LATE, "hash_size": 1800},
        "lora r1": {"method": "lora", "rank": 1, "targets": LATE},
        "vera-tied": {"method": "vera-tied", "targets": LATE},
        "vera-d": {"method": "vera-d", "targets": LATE},
        "lora-xs r16": {"method": "lora-xs", "rank": 16, "targets": LATE},
        "fourier-d r256": {"method": "fourier-d", "rank": 256, "targets": LATE},
        "lora r8, trained head": {"method": "lora", "rank": 8, "targets": LATE, "head": None},
        "vera r256, trained head": {"method": "vera", "rank": 256, "targets": LATE, "head": None},
    }
)


@dataclass(frozen=True)
class Point:
    """One arm and seed in one stored dtype. bytes: of all tensors, a trained head's too. is_edge: of the rates."""

    arm: str
    seed: int
    lr: float
    is_edge: int
    stored: str
    bytes: int
    score: float
    eval_loss: float


def write_bed(data: Path, folder: Path, labels: int, shots: int, tests: int) -> tuple[Path, Table]:
    """The rows to train on, as a file, and those to test on: so many of each label, in the order of a hash."""
    for split, most in (("train", shots), ("test", tests)):
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        chosen, seen = set(sorted({row["label"] for row in rows})[:labels]), Counter[str]()
        with (folder / f"{split}.jsonl").open("w") as file:
            for row in sorted(rows, key=lambda row: hashlib.sha1(("vera" + row["text"]).encode()).hexdigest()):
                seen[row["label"]] += 1
                if row["label"] in chosen and seen[row["label"]] <= most:
                    file.write(json.dumps({"text": row["text"], "label": row["label"]}) + "\n")
    return folder / "train.jsonl", read(folder / "test.jsonl")


@dataclass(frozen=True)
class Bed:
    """What all arms train and are scored on."""

    base: Base
    data: Path
    test: Table
    head: str
    steps: int

    def recipe(self, arm: str, seed: int) -> Recipe:
        """The arm's, at the rate that its method has."""
        choices = {"head": self.head, **ARMS[arm]}
        own = Recipe(model="minilm", data=str(self.data), validation=0.2, max_steps=self.steps, fleet=True, **choices)
        return own.replaced(lr=own.learning_rate, seed=seed, run_seed=seed, slots=len(FACTORS))

    def points(self, arm: str, seed: int) -> Iterator[Point]:
        """The arm's best rate of this seed, scored in every dtype."""
        recipe, found = self.recipe(arm, seed), dict[float, Outcome]()
        further: tuple[float, ...] = FACTORS
        for _ in range(1 + EXTENSIONS):
            found |= self._trained(recipe, further)
            losses = {factor: inf if o.eval_loss is None else o.eval_loss for factor, o in found.items()}
            one = beyond(losses)
            if one is None:
                break
            further = (one,)
        best = min(losses, key=lambda factor: losses[factor])
        adapter = found[best].adapter
        assert adapter is not None
        stored = {dtype: rounded(adapter, dtype) for dtype in STORED_DTYPES}
        scores = fleet_scores(self.base, stored, dict.fromkeys(stored, self.test), batch_size=64)
        values = {one.name: one.scores[one.main] for one in scores}
        lr, is_edge = recipe.learning_rate * best, int(best in (min(losses), max(losses)))
        for dtype in stored:
            size = read_header(encode(adapter, dtype)).index.data_bytes
            yield Point(arm, seed, lr, is_edge, dtype, size, values[dtype], losses[best])

    def _trained(self, recipe: Recipe, factors: tuple[float, ...]) -> dict[float, Outcome]:
        everyone = [Tenant(f"{factor:g}", TenantRows(str(self.data))) for factor in factors]
        own = {f"{factor:g}": {"lr": recipe.learning_rate * factor} for factor in factors}
        result = train_here(recipe, everyone, base=self.base, tell=lambda line: None, own=own)
        return {float(outcome.name): outcome for outcome in result.outcomes}


def summary(points: list[Point]) -> Iterator[str]:
    """A line of Markdown for each arm and dtype: the mean over seeds, and the paired difference from the reference."""
    of = {(p.arm, p.stored, p.seed): p.score for p in points}
    sizes = {(p.arm, p.stored): p.bytes for p in points}
    yield "| arm | stored | bytes | seeds | score | against lora r8 in float32 | rates |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for arm, stored in sorted(sizes, key=lambda key: -sizes[key]):
        own = [p for p in points if (p.arm, p.stored) == (arm, stored)]
        reference = [of[REFERENCE, "float32", p.seed] for p in own if (REFERENCE, "float32", p.seed) in of]
        scores = [p.score for p in own]
        paired = interval(scores, reference) if len(reference) == len(scores) else None
        difference = "" if paired is None else "{:+.3f} ± {:.3f}".format(*paired)
        spread = stdev(scores) if len(scores) > 1 else 0.0
        rates = ", ".join(f"{p.lr:g}{' (edge)' * p.is_edge}" for p in own) if stored == "float32" else ""
        cells = f"{sizes[arm, stored]:,} | {len(own)} | {fmean(scores):.3f} ± {spread:.3f} | {difference} | {rates}"
        yield f"| {arm} | {stored} | {cells} |"


def draw(points: list[Point], path: Path) -> None:
    """Mean score over the seeds against stored bytes, a line for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for i, arm in enumerate(dict.fromkeys(p.arm for p in points)):
        means: dict[int, list[float]] = {}
        for p in points:
            means.setdefault(p.bytes, []).extend([p.score] * (p.arm == arm))
        ordered = sorted((size, fmean(scores)) for size, scores in means.items() if scores)
        axes.plot(*zip(*ordered, strict=True), "os^Dv"[i % 5] + "-", markersize=4, linewidth=1, label=arm)
    axes.set(xscale="log", xlabel="stored bytes, the head's included", ylabel="accuracy on the test rows")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path)


def kept(path: Path) -> list[Point]:
    """The points of earlier calls."""
    kinds = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Point)}
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return [Point(**{name: kinds[name](value) for name, value in row.items()}) for row in rows]


def add(path: Path, points: list[Point]) -> None:
    """Appends to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Point)], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(map(asdict, points))


def main() -> None:
    """Makes the points that are not there, then the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--tests", type=int, default=30)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--head", default="labels")
    parser.add_argument("--output", type=Path, default=Path("frontier"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = asked.output / "points.csv"
    with TemporaryDirectory() as folder:
        data, test = write_bed(asked.data, Path(folder), asked.labels, asked.shots, asked.tests)
        base = replace(load_base("minilm", task=test.task, labels=test.labels), untrained=())
        bed = Bed(base, data, test, asked.head, asked.steps)
        for seed in range(asked.seeds):
            for arm in asked.arms:
                if all((p.arm, p.seed) != (arm, seed) for p in kept(path)):
                    made = list(bed.points(arm, seed))
                    add(path, made)
                    print(made[0], flush=True)
    points = kept(path)
    print("\n".join(summary(points)))
    draw(points, asked.output / "frontier.png")


if __name__ == "__main__":
    main()
