"""A sweep of learning rates is a fleet: candidates are slots of one bank, on the same rows in the same batches.

Successive halving (Jamieson 2016, figure 1): half of the candidates is dropped at each rung. Where the one that is left
is the highest or the lowest that was tried, the sweep goes on beyond it until the loss turns. Each candidate is, to
the step at which it was dropped, the run that its rate alone would have given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, isfinite
from statistics import fmean
from typing import Any

import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.data.packed_rows import PackedRows
from polyvera.model.load import Base, place
from polyvera.train.fleet.fleet import Fleet, views_for_gradients
from polyvera.train.fleet.halving import POWER, RUNGS, Rung, best_rate, going_on, moved, whole_run_rate
from polyvera.train.fleet.journal import Journal
from polyvera.train.fleet.member import Member
from polyvera.train.preparation import adapted
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import lr_factor
from polyvera.train.tell import Tell, to_nobody

FACTORS = tuple(2.0**k for k in range(-3, 5))  # multiples of the method's own rate
WARMUP = 0.06  # that the rungs are for; a longer one moves them
RATIO = 2.0  # from one rate to the next beyond an edge
BEYOND, EXTENSIONS = 2, 3  # rates beyond an edge at a time, and how many times
SAY_S = 15.0
PARTS = 8  # of the held-out rows, whose losses tell how far a difference can be trusted


@dataclass(frozen=True)
class SweepRows:
    """One tenant's rows.

    held_out: what candidates are compared on; rows of the training set among them come after the last rung. total: the
    steps of the whole run. stretch: what multiplies the steps to each rung.
    """

    name: str
    training: PackedRows
    held_out: PackedRows
    total: int
    stretch: float = 1.0


@dataclass(frozen=True)
class TriedRate:
    """A rate, the steps that it made before it was dropped, and its last loss as a share of that at the start."""

    lr: float
    num_steps: int
    loss: float


@dataclass(frozen=True)
class Sweep:
    """What a sweep chose and what it cost.

    lr: for the whole run. best: of those tried, after this share of the steps. tried: every rate, the lowest first.
    num_tenants: how many it was made on. num_rows: rows that went through the model forward and backward.
    """

    lr: float
    best: float
    share: float
    tried: tuple[TriedRate, ...]
    num_tenants: int
    num_rows: int
    seconds: float

    @property
    def is_edge(self) -> bool:
        """Whether the best is the lowest or the highest rate tried, so that a better one may lie beyond."""
        return self.best in (self.tried[0].lr, self.tried[-1].lr)

    @property
    def text(self) -> str:
        """The choice, all that was tried and the cost, in one line."""
        losses = ", ".join(f"{one.lr:g}: {one.loss:.2f}" for one in self.tried)
        edge = ", the edge of what was tried," if self.is_edge else ""
        on = f" on {self.num_tenants} tenants" if self.num_tenants > 1 else ""
        return (
            f"lr {self.lr:g} by a sweep of {len(self.tried)} rates{on}: {self.best:g}{edge} is the best after "
            f"{self.share:.0%} of the steps (loss by that of the start, where each was dropped: {losses}); "
            f"{self.num_rows:,} rows, {self.seconds:.1f} s"
        )


def step_of(rung: Rung, recipe: Recipe, total: int, stretch: float) -> int:
    """The steps of `total` after which a rung compares candidates."""
    late = max(0.0, recipe.warmup - WARMUP)
    return ceil(round(min(1.0, rung.share * stretch + late) * total, 6))


def sweep(
    recipe: Recipe,
    base: Base,
    everyone: Sequence[SweepRows],
    start: Adapter | None = None,
    tell: Tell = to_nobody,
) -> Sweep:
    """Tries FACTORS times the recipe's rate on all of these tenants; one rate for all has the lowest mean loss.

    base: bare, and bare again afterwards; torch's random numbers are as before too. start: what a run begins from.
    tell: called with a line at each rung, and every SAY_S seconds.
    """
    started = time.monotonic()
    place(base)
    with torch.random.fork_rng(), adapted(recipe, base, len(FACTORS) * len(everyone)) as bank, views_for_gradients():
        assert bank is not None
        search = RateSearch(recipe, base, bank, everyone, start, tell)
        best = search.run()
    tried = tuple(search.tried[rate] for rate in sorted(search.tried))
    lr, rows = whole_run_rate(best, search.movement), search.fleet.traffic.rows
    return Sweep(lr, best, search.share, tried, len(everyone), rows, time.monotonic() - started)


class RateSearch:
    """The candidates of a sweep that train, by their rate and tenant, and what is known of every rate."""

    def __init__(
        self,
        recipe: Recipe,
        base: Base,
        bank: Bank,
        everyone: Sequence[SweepRows],
        start: Adapter | None,
        tell: Tell = to_nobody,
    ) -> None:
        self.recipe, self.everyone = recipe, {one.name: one for one in everyone}
        self.tell, self.told = tell, time.monotonic()
        self.fleet = Fleet(recipe, base, bank, Journal(None, None), deque(), "", start, row=everyone[0].training.task)
        self.members: dict[tuple[float, str], Member] = {}
        self.tried: dict[float, TriedRate] = {}
        self.losses: dict[float, list[float]] = {}
        last = [(step_of(RUNGS[-1], recipe, one.total, one.stretch), one.total) for one in everyone]
        self.share = fmean(step / total for step, total in last)
        self.movement = fmean(moved(lr_factor(recipe, total), step, total) for step, total in last)
        self.slots = list(bank.slots)
        together = recipe.batch_size if self.fleet.row.embeds else 1  # rows whose texts are compared with each other
        self.num_parts = min(PARTS, max(1, min(len(one.held_out) for one in everyone) // together))

    def run(self) -> float:
        """Every rung; the rate that is left."""
        self.admit([_rounded(self.recipe.learning_rate * factor) for factor in FACTORS])
        for rung in RUNGS:
            self.train(rung)
        self.extend()
        return self.best()

    def extend(self) -> None:
        """Goes on beyond an edge that is left until the loss turns."""
        for _ in range(EXTENSIONS):
            rates = self.beyond()
            if not rates:
                return
            self.admit(rates)
            self.train(RUNGS[-1])

    def admit(self, rates: Sequence[float]) -> None:
        """Gives each rate a slot for every tenant."""
        for lr in rates:
            for name, rows in self.everyone.items():
                recipe = self.recipe.replaced(lr=lr, epochs=None, max_steps=rows.total)
                slot = self.slots.pop()
                self.members[lr, name] = self.fleet.seated(name, slot, recipe, rows.training, rows.held_out)

    def train(self, rung: Rung) -> None:
        """Brings all that train to the rung, and drops those that do not go on."""
        targets = {name: step_of(rung, self.recipe, rows.total, rows.stretch) for name, rows in self.everyone.items()}
        self._first_steps()
        while behind := [m for m in self.members.values() if m.step < targets[m.name]]:
            self._round(behind)
            self._say(f"at step {min(m.step for m in behind)} of {max(targets.values())}", SAY_S)
        self._compare()
        left = {lr for lr, _ in self.members}
        if left:
            self._say(f"after {max(targets.values())} steps {self.best():g} is the best")
        for lr in left - (going_on(left, self.best(), rung) if left else left):
            self._drop(lr)

    def best(self) -> float:
        """The best of the rates that train, of all that were tried where none does."""
        left = {lr: self.losses[lr] for lr, _ in self.members} or {lr: [inf] for lr in self.tried}
        return best_rate(left, self.recipe.learning_rate / self.movement**POWER)

    def beyond(self) -> list[float]:
        """The next rates where the best is an edge of those tried, none where the loss has turned."""
        best, rates = self.best(), sorted(self.tried)
        if not isfinite(self.tried[best].loss) or rates[0] < best < rates[-1]:
            return []
        ratio = RATIO if best == rates[-1] else 1 / RATIO
        return [_rounded(best * ratio**k) for k in range(1, BEYOND + 1)]

    def _say(self, words: str, pause_s: float = 0.0) -> None:
        """A line about the rates that train, where none was told for so long."""
        if time.monotonic() - self.told >= pause_s:
            rates, self.told = sorted({lr for lr, _ in self.members}), time.monotonic()
            self.tell(f"the sweep of {', '.join(f'{lr:g}' for lr in rates)}: {words}")

    def _first_steps(self) -> None:
        """The first step of all that have made none, computed once for each tenant."""
        fresh = [m for m in self.members.values() if m.step == 0]
        first = {m.name: m for m in reversed(fresh)}
        if fresh:
            self._round(list(first.values()))
        for member in (m for m in fresh if m is not first[m.name]):
            source = first[member.name]
            if source.step:
                self.fleet.optimizer.copy_first_step(source.index, member.index, member.scale / source.scale)
                member.advance(source.losses[0])

    def _round(self, members: Sequence[Member]) -> None:
        """A step of these; whose loss is no number leaves, and its rate with it."""
        self.fleet.members = list(members)
        self.fleet.round()
        lost = {id(m) for m in members} - {id(m) for m in self.fleet.members}
        for lr in {lr for (lr, _), m in self.members.items() if id(m) in lost}:
            self.tried[lr] = TriedRate(lr, self._num_steps(lr), inf)
            self._drop(lr)

    def _compare(self) -> None:
        """Notes the losses of every rate that trains, of one tenant after the other."""
        losses = self._losses()
        for lr in {lr for lr, _ in self.members}:
            own = self.losses[lr] = [loss for name in self.everyone for loss in losses[lr, name]]
            self.tried[lr] = TriedRate(lr, self._num_steps(lr), mean if isfinite(mean := fmean(own)) else inf)

    def _losses(self) -> Mapping[tuple[float, str], list[float]]:
        """Each candidate's losses on parts of its held-out rows, as shares of its first; infinite where it raises."""
        self.fleet.members = list(self.members.values())
        parts = [self.fleet.losses_on(partial(_part, i, self.num_parts)) for i in range(self.num_parts)]
        left = {m.index for m in self.fleet.members}
        return {
            key: [part[m.index] / m.losses[0] if m.index in left else inf for part in parts]
            for key, m in self.members.items()
        }

    def _num_steps(self, lr: float) -> int:
        return max(m.step for (rate, _), m in self.members.items() if rate == lr)

    def _drop(self, lr: float) -> None:
        for key in [key for key in self.members if key[0] == lr]:
            self.slots.append(self.members.pop(key).slot)


def _part(number: int, num: int, member: Member) -> list[dict[str, Any]]:
    """One of `num` parts of a member's held-out rows."""
    return list(member.held_out or ())[number::num]


def _rounded(lr: float) -> float:
    """A rate that can be written down, and given again."""
    return float(f"{lr:.3g}")
