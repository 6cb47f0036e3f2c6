"""Universal weights: does a basis that is learned on some tenants serve others better than its nulls?

    python benchmarks/universal.py DATA [--seeds 0 1 2] [--ranks 24] [--steps 32] [--output docs/results/universal]

DATA is a folder with clinc150 and banking77, rows of text and label. MiniLM, q and v of the late layers, one d a layer
over one shared pair: all that is stored of a tenant is rank · 6 numbers. Bases are made of tenants of ten intents of
clinc150, whose heads are held at their labels' names; then new tenants train d alone, near ones (other intents of
clinc150) and far ones (banking77). Arms:

    drawn          the kaiming pair
    learned        A and B learned with the tenants' d, which stay centred
    null           the singular values of the learned A and B in random directions
    activations    principal components of what layers read and of the gradients of what they give
    gradients      singular pairs of the layers' mean gradients
    mean           the mean of the tenants' own d on the drawn pair, not trained on the new tenant
    mean + drawn   training from there, on the drawn pair: the null of random directions beside the mean

Every arm and new tenant has its own rate: all candidates train as slots of one bank, an edge is extended, and the one
of the lowest validation loss is scored. Lines that are in the output already are not made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from math import inf
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from csv_table import write_csv
from torch import Tensor

from polyvera import Recipe, load_base
from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.basis import given_basis
from polyvera.adapter.targets import find_sites
from polyvera.bases.joint_pair import JointPair
from polyvera.bases.make import BasisRun, activation_pair, gradient_pair, sized
from polyvera.compare.bracket import beyond
from polyvera.compare.interval import interval
from polyvera.data.tables import read
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.frozen_head import LabelReader, made_head
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.fleet import Fleet
from polyvera.train.fleet.one_process import train_here
from polyvera.train.preparation import spec_for
from polyvera.train.tell import to_nobody
from polyvera.train.tenants import Tenant, TenantRows

LATE = r".*encoder\.layer\.[345]\.attention\.self\.(query|value)"
METHOD, HEAD = "vera-d", "labels"
INTENTS, LEARNED_ON, NEAR, FAR = 10, 12, 1, 1
LEARNING = 2  # times the steps of a new tenant
SOURCES = ("clinc150", "banking77")
FACTORS, EXTENSIONS = (0.25, 1.0, 4.0), 4
LOOKS = 4  # validation losses of a run
DRAWN, LEARNED, NULL, MEAN = "drawn", "learned", "null", "mean"
# Each arm: the basis that it trains on, and whether it starts at the tenants' mean.
ARMS: Mapping[str, tuple[str, bool]] = {
    DRAWN: (DRAWN, False),
    LEARNED: (LEARNED, False),
    NULL: (NULL, False),
    "activations": ("activations", False),
    "gradients": ("gradients", False),
    MEAN: (DRAWN, True),
    "mean + drawn": (DRAWN, True),
}


@dataclass(frozen=True)
class Point:
    """An arm on a new tenant. losses: on the validation rows at each look, in nats, joined by spaces."""

    arm: str
    tenant: str
    seed: int
    rank: int
    bytes: int
    lr: float
    is_edge: int
    score: float
    eval_loss: float
    losses: str


def write_tenants(data: Path, folder: Path, shots: int, tests: int) -> None:
    """Files of INTENTS labels each: learn/*.jsonl, new/NAME.jsonl and test/NAME.jsonl."""
    for source in SOURCES:
        rows = {split: read_rows(data / source / f"{split}.jsonl") for split in ("train", "test")}
        labels = sorted({row["label"] for row in rows["train"]}, key=hashed)
        chunks = [labels[i : i + INTENTS] for i in range(0, len(labels) - INTENTS + 1, INTENTS)]
        learn = chunks[:LEARNED_ON] if source == SOURCES[0] else []
        new = chunks[len(learn) :][: NEAR if learn else FAR]
        for kind, several in (("learn", learn), ("new", new)):
            for i, chunk in enumerate(several):
                write(folder / kind / f"{source}-{i}.jsonl", rows["train"], chunk, shots)
                write(folder / "test" / f"{source}-{i}.jsonl", rows["test"], chunk, tests)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hashed(text: str) -> str:
    return hashlib.sha1(("vera" + text).encode()).hexdigest()


def write(path: Path, rows: Sequence[dict[str, str]], labels: Sequence[str], most: int) -> None:
    """So many rows of each label, in the order of a hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = []
    for label in sorted(labels):
        own = sorted((row["text"] for row in rows if row["label"] == label), key=hashed)
        chosen += [{"text": text, "label": label} for text in own[:most]]
    chosen.sort(key=lambda row: hashed(row["text"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))


class HeldHeads:
    """Called after each round of a fleet: every tenant's head is that of its labels' names, which no step moves."""

    def __init__(self, base: Base, every: Sequence[tuple[str, ...]]) -> None:
        reader = LabelReader(base.model, base.tokenizer)
        self._known = {labels: made_head(HEAD, 0, labels, reader) for labels in every}

    def __call__(self, fleet: Fleet) -> None:
        """Puts them in place."""
        for member in fleet.members:
            for key, value in self._known[member.labels].items():
                entry = fleet.bank.layout.entries[key]
                with torch.no_grad():
                    fleet.bank.flat[member.index, entry.offset : entry.offset + entry.size] = value.flatten()
        fleet.bank.version += 1


@dataclass(frozen=True)
class Made:
    """What was learned: the sha256 of each basis by arm, None for the drawn one; the mean of the tenants' letters."""

    bases: Mapping[str, str | None]
    mean: Mapping[str, Tensor]


@dataclass(frozen=True)
class Bed:
    """Where all arms learn, train and are scored."""

    folder: Path
    rank: int
    steps: int
    registry: Registry

    def recipe(self, seed: int, **choices: Any) -> Recipe:
        """What all runs have in common, at the rate that the method has."""
        own = {"model": "minilm", "method": METHOD, "rank": self.rank, "targets": LATE, "fleet": True}
        recipe = Recipe(**own, max_steps=self.steps, store=self.registry.url, seed=seed, run_seed=seed, **choices)
        return recipe.replaced(lr=recipe.learning_rate)

    def made(self, seed: int) -> Made:
        """Learns from the tenants of learn/, all at once."""
        paths = sorted((self.folder / "learn").iterdir())
        line = tuple(Tenant(path.stem, TenantRows(str(path))) for path in paths)
        first = read(paths[0])
        base = load_base("minilm", task=first.task, labels=first.labels)
        recipe = self.recipe(seed, data=str(paths[0].parent), slots=len(line))
        recipe = recipe.replaced(max_steps=LEARNING * self.steps)
        run, heads, joint, seen = (
            BasisRun(recipe, base, line, to_nobody),
            HeldHeads(base, [read(path).labels for path in paths]),
            JointPair(),
            list[Adapter](),
        )

        def learn(fleet: Fleet) -> None:
            heads(fleet)
            joint(fleet)

        def look(fleet: Fleet) -> None:
            heads(fleet)
            seen[:] = [fleet.bank.extract(member.slot) for member in fleet.members] or seen

        run.train(learn)
        sides = run.sides(look)
        assert joint.pair is not None
        learned = sized(*(t.detach() for t in joint.pair))
        pairs = {
            LEARNED: learned,
            NULL: null_of(*learned, seed),
            "activations": sized(*activation_pair(sides, self.rank)),
            "gradients": sized(*gradient_pair(sides, self.rank)),
        }
        bases = {
            arm: self.registry.bases.put(given_basis(*pair), f"{arm}-{self.rank}-{seed}") for arm, pair in pairs.items()
        }
        letters = [key for key, entry in seen[0].layout.entries.items() if entry.letter]
        mean = {key: torch.stack([one.tensors[key] for one in seen]).mean(0) for key in letters}
        return Made({DRAWN: None, **bases}, mean)

    def points(self, tenant: str, seed: int, made: Made) -> Iterator[Point]:
        """Every arm on a new tenant."""
        data, test = self.folder / "new" / f"{tenant}.jsonl", read(self.folder / "test" / f"{tenant}.jsonl")
        base = replace(load_base("minilm", task=test.task, labels=test.labels), untrained=())
        choices = {"data": str(data), "validation": 0.3, "head": HEAD, "eval_every": max(1, self.steps // LOOKS)}
        for arm, (basis, starts) in ARMS.items():
            recipe = self.recipe(seed, slots=len(FACTORS), basis=made.bases[basis], **choices)
            start = begun(recipe, base, made.mean, test.labels) if starts else None
            run = Run(start, 0.0, 0, 0.0, "") if arm == MEAN else best_run(recipe, base, start)
            assert run.adapter is not None
            [one] = fleet_scores(base, {tenant: run.adapter}, {tenant: test}, batch_size=64)
            size = 4 * run.adapter.layout.num_params
            score = one.scores[one.main]
            yield Point(arm, tenant, seed, self.rank, size, run.lr, run.is_edge, score, run.eval_loss, run.losses)


@dataclass(frozen=True)
class Run:
    """The best of a sweep. losses: at each look, joined by spaces."""

    adapter: Adapter | None
    lr: float
    is_edge: int
    eval_loss: float
    losses: str


def best_run(recipe: Recipe, base: Base, start: Adapter | None) -> Run:
    """The run of the lowest validation loss, over bracketed rates that are slots of one bank."""
    found, further = dict[float, Run](), FACTORS
    for _ in range(1 + EXTENSIONS):
        found |= swept(recipe, base, start, further)
        one = beyond({factor: run.eval_loss for factor, run in found.items()})
        if one is None:
            break
        further = (one,)
    best = min(found, key=lambda factor: found[factor].eval_loss)
    return replace(found[best], is_edge=int(best in (min(found), max(found))))


def swept(recipe: Recipe, base: Base, start: Adapter | None, factors: tuple[float, ...]) -> dict[float, Run]:
    """A run at each of these times the recipe's rate."""
    everyone = [Tenant(f"{factor:g}", TenantRows(recipe.data)) for factor in factors]
    own = {f"{factor:g}": {"lr": recipe.learning_rate * factor} for factor in factors}
    curves = dict[str, list[tuple[int, float]]]()

    def watch(fleet: Fleet) -> None:
        curves.update({member.name: member.eval_losses for member in fleet.members})

    result = train_here(recipe, everyone, base=base, start=lambda: start, watch=watch, tell=to_nobody, own=own)
    return {
        float(o.name): Run(
            o.adapter,
            recipe.learning_rate * float(o.name),
            0,
            inf if o.eval_loss is None else o.eval_loss,
            " ".join(f"{loss:.4f}" for _, loss in curves.get(o.name, [])),
        )
        for o in result.outcomes
    }


def begun(recipe: Recipe, base: Base, letters: Mapping[str, Tensor], labels: tuple[str, ...]) -> Adapter:
    """An adapter of the recipe with those letters."""
    spec, _ = spec_for(recipe, base)
    adapter = adapter_from(spec, find_sites(base.model, spec), letters)
    return replace(adapter, labels=labels)


def null_of(A: Tensor, B: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The singular values of A and B in random directions."""
    draw = torch.Generator().manual_seed(seed)

    def turned(M: Tensor) -> Tensor:
        rows, columns = (torch.linalg.qr(torch.randn(n, min(M.shape), generator=draw))[0] for n in M.shape)
        return rows @ torch.diag(torch.linalg.svdvals(M.float())) @ columns.T

    return turned(A), turned(B)


def summary(points: Sequence[Point]) -> Iterator[str]:
    """A line of Markdown for each arm and rank: means over tenants and seeds, paired with the null."""
    of = {(p.arm, p.tenant, p.seed, p.rank): p for p in points}
    yield "| rank | arm | runs | score, near | score, far | validation loss | against null, score | losses by step |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for rank, arm in dict.fromkeys((p.rank, p.arm) for p in sorted(points, key=lambda p: p.rank)):
        own = [p for p in points if (p.rank, p.arm) == (rank, arm)]
        near, far = ([p.score for p in own if p.tenant.startswith(source)] for source in SOURCES)
        nulls = [of[NULL, p.tenant, p.seed, rank].score for p in own if (NULL, p.tenant, p.seed, rank) in of]
        paired = interval([p.score for p in own], nulls) if len(nulls) == len(own) and arm != NULL else None
        curves = [[float(x) for x in p.losses.split()] for p in own if p.losses]
        curve = " ".join(f"{fmean(at):.2f}" for at in zip(*curves, strict=False))
        edges = sum(p.is_edge for p in own)
        difference = "" if paired is None else "{:+.3f} ± {:.3f}".format(*paired)
        scores = " | ".join(f"{fmean(scores):.3f}" if scores else "" for scores in (near, far))
        loss = f"{fmean(p.eval_loss for p in own):.3f}{f' ({edges} at an edge)' if edges else ''}" if curves else ""
        yield f"| {rank} | {arm} | {len(own)} | {scores} | {loss} | {difference} | {curve} |"


def kept(path: Path) -> list[Point]:
    """The points of earlier calls."""
    kinds = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Point)}
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return [Point(**{name: kinds[name](value) for name, value in row.items()}) for row in rows]


def main() -> None:
    """Makes the points that are not there, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, nargs="*", default=[24])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--tests", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("universal"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = asked.output / "points.csv"
    with TemporaryDirectory() as folder:
        write_tenants(asked.data, Path(folder), asked.shots, asked.tests)
        names = sorted(path.stem for path in (Path(folder) / "new").iterdir())
        for seed, rank in product(asked.seeds, asked.ranks):
            bed = Bed(Path(folder), rank, asked.steps, Registry(Path(folder) / "store"))
            there = {(p.tenant, p.seed, p.rank) for p in kept(path)}
            left = [name for name in names if (name, seed, rank) not in there]
            made = bed.made(seed) if left else None
            for name in left:
                assert made is not None
                write_csv(path, [asdict(p) for p in (*kept(path), *bed.points(name, seed, made))])
                print(name, seed, rank, flush=True)
    print("\n".join(summary(kept(path))))


if __name__ == "__main__":
    main()
