"""The learning rate of a run that leaves it open: by a sweep where there are rows to choose by, else the method's own.

What was chosen, and why there was no sweep, is always told in one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from pathlib import Path
from types import MappingProxyType

from polyvera.adapter.adapter import Adapter
from polyvera.data.batching import order
from polyvera.data.encoding import Encoded
from polyvera.data.packed_rows import PackedRows
from polyvera.errors import DataError
from polyvera.model.load import Base
from polyvera.store.durable import replace_file
from polyvera.train.fleet.fleet import SLOTS
from polyvera.train.fleet.halving import RUNGS
from polyvera.train.fleet.sweep import FACTORS, Sweep, SweepRows, step_of, sweep
from polyvera.train.preparation import encode_tables
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import num_steps
from polyvera.train.tell import Tell
from polyvera.train.tenants import Tenant, labelled

MIN_ROWS, MIN_STEPS = 40, 16
MIN_HELD_OUT, MAX_HELD_OUT = 8, 256
HELD_OUT_SHARE = 0.1  # of the training rows, where no others are there to choose by
ROWS_A_HELD_OUT = (
    48  # rows that a run trains on for each row that its candidates are compared on, which bounds the cost
)
SAMPLE_SHARE = 2  # a fleet's sweep is made on one tenant of so many, as many as its slots hold
MAX_STRETCH = 1 / RUNGS[-1].share  # how much further a sweep goes on few tenants of many: at most a whole run
TRIES = 8  # tenants that are looked at for each that the sample is to have
KEPT = "learning_rate.json"

# Why a run has no candidates in slots.
NO_SLOTS: Mapping[str, Callable[[Recipe], bool]] = MappingProxyType(
    {
        "full fine-tuning has no slots for candidates": lambda recipe: recipe.full,
        "a shrinking rank budget has no slots for candidates": lambda recipe: recipe.budget is not None,
        "several processes train together": lambda recipe: int(os.environ.get("WORLD_SIZE", "1")) > 1,
        "several workers train apart": lambda recipe: recipe.workers is not None,
    }
)


@dataclass(frozen=True)
class LearningRate:
    """A run's rate. sweep: what chose it, None without one. reason: why there was no sweep, '' where none was asked."""

    lr: float
    sweep: Sweep | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """What was chosen and why, in one line; '' for a rate that was given."""
        if self.sweep is not None:
            return self.sweep.text
        return self.reason and f"lr {self.lr:g}, the method's own, without a sweep: {self.reason}"


def kept_rate(folder: Path | None, ask: Callable[[], LearningRate], *, resume: bool) -> LearningRate:
    """The rate of the run that is resumed, else what ask() returns, which is kept in the run's folder."""
    path = None if folder is None else folder / KEPT
    if path is not None and resume and path.exists():
        return LearningRate(float(json.loads(path.read_text())["lr"]))
    found = ask()
    if path is not None:
        replace_file(path, json.dumps({"lr": found.lr, "how": found.text}).encode())
    return found


def unswept_rate(recipe: Recipe) -> LearningRate | None:
    """The rate that is given, or the method's own where no sweep can be made; None where one could."""
    reason = next((why for why, holds in NO_SLOTS.items() if holds(recipe)), "")
    if recipe.leaves_lr_open and not reason:
        return None
    return LearningRate(recipe.learning_rate, reason=reason if recipe.leaves_lr_open else "")


def solo_rate(
    recipe: Recipe, base: Base, rows: Encoded, held_out: Encoded | None, start: Adapter | None, tell: Tell
) -> LearningRate:
    """The rate of a run that trains one adapter."""
    return _rate(recipe, base, lambda: [sweep_rows("", recipe, rows, held_out)], start, tell)


def fleet_rate(
    recipe: Recipe, base: Base, everyone: Sequence[Tenant], kind: str, start: Adapter | None, tell: Tell
) -> LearningRate:
    """One rate for all tenants, by a sweep on a sample of them. kind: of their rows.

    Few rows say little about one tenant's best rate; those of several, which share each round, say more. The sample
    takes at most SAMPLE_SHARE of the tenants; where it is less, its rungs are later for the same cost.
    """
    return _rate(recipe, base, lambda: _sampled(recipe, base, everyone, kind), start, tell)


def _rate(
    recipe: Recipe, base: Base, rows_of: Callable[[], Sequence[SweepRows]], start: Adapter | None, tell: Tell
) -> LearningRate:
    known = unswept_rate(recipe)
    if known is not None:
        return known
    try:
        rows = rows_of()
    except DataError as error:
        return LearningRate(recipe.learning_rate, reason=str(error))
    found = sweep(recipe, base, rows, start, tell)
    return LearningRate(found.lr, found)


def sweep_rows(name: str, recipe: Recipe, rows: Encoded, held_out: Encoded | None, stretch: float = 1.0) -> SweepRows:
    """The rows that a sweep trains on and those that it chooses by. Raises DataError where they are too few.

    The latter are validation rows, else the last of the first pass, which no rung comes to, else a part held out.
    """
    _, total = num_steps(recipe, len(rows), 1)
    if len(rows) < MIN_ROWS or total < MIN_STEPS:
        raise DataError(
            f"{len(rows)} rows in {total} steps say too little; it takes {MIN_ROWS} rows and {MIN_STEPS} steps"
        )
    num_a_step = recipe.batch_size * recipe.accumulate
    most = min(MAX_HELD_OUT, max(MIN_HELD_OUT, total * num_a_step // ROWS_A_HELD_OUT))
    if held_out is not None:
        watched = _part(held_out, range(len(held_out))[:most])
        return SweepRows(name, PackedRows.of(rows), PackedRows.of(watched), total, stretch)
    packed = PackedRows.of(rows)
    lengths = packed.lengths if recipe.group_by_length else None
    ordered = order(len(rows), recipe.run_seed, 0, lengths, recipe.batch_size)
    if step_of(RUNGS[-1], recipe, total, stretch) * num_a_step + most <= len(rows):
        return SweepRows(name, packed, PackedRows.of(_part(rows, ordered[-most:])), total, stretch)
    most = min(most, int(HELD_OUT_SHARE * len(rows)))
    if most < MIN_HELD_OUT:
        raise DataError(
            f"{len(rows)} rows for {total} steps are too few to hold {MIN_HELD_OUT} out; give validation, or more rows"
        )
    first, rest = sorted(ordered[:most]), sorted(ordered[most:])
    return SweepRows(name, PackedRows.of(_part(rows, rest)), PackedRows.of(_part(rows, first)), total, stretch)


def _part(rows: Encoded, numbers: Iterable[int]) -> Encoded:
    return replace(rows, rows=tuple(rows[i] for i in numbers), shortened=(), skipped=())


def _sampled(recipe: Recipe, base: Base, everyone: Sequence[Tenant], kind: str) -> list[SweepRows]:
    """The rows of evenly spaced tenants that have enough. Raises DataError where none has."""
    num = max(1, min((recipe.slots or SLOTS) // len(FACTORS), len(everyone) // SAMPLE_SHARE))
    stretch = min(MAX_STRETCH, max(1.0, len(everyone) / num / SAMPLE_SHARE))
    stride = ceil(len(everyone) / num)
    spaced = [tenant for first in range(stride) for tenant in everyone[first::stride]][: TRIES * num]
    found = list(islice(_usable(recipe, base, spaced, kind, stretch), num))
    if not found:
        raise DataError(f"none of {len(spaced)} tenants has {MIN_ROWS} rows in {MIN_STEPS} steps to choose by")
    return found


def _usable(recipe: Recipe, base: Base, everyone: Iterable[Tenant], kind: str, stretch: float) -> Iterator[SweepRows]:
    for tenant in everyone:
        try:
            rows, held_out = encode_tables(recipe, labelled(tenant.tables(recipe), kind, base), base)
            yield sweep_rows(tenant.name, recipe, rows, held_out, stretch)
        except Exception:  # what is wrong with a tenant's rows is reported when its turn comes
            continue
