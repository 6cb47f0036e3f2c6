"""A sweep of learning rates is a fleet: candidates are slots of one bank, on the same rows in the same batches.

Successive halving (Jamieson 2016, figure 1): the worse half of the candidates is dropped at each rung. Where the one
that is left is the highest or the lowest that was tried, the sweep goes on beyond it until the loss turns. Each
candidate is, to the step at which it was dropped, the run that its rate alone would have given.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from statistics import fmean

import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.data.packed_rows import PackedRows
from polyvera.model.load import Base, place
from polyvera.train.fleet.fleet import Fleet, views_for_gradients
from polyvera.train.fleet.journal import Journal
from polyvera.train.fleet.member import Member
from polyvera.train.preparation import adapted
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import num_steps

FACTORS = tuple(2.0**k for k in range(-3, 5))  # multiples of the method's own rate
RUNGS = (0.105, 0.16, 0.25)  # shares of a run's steps at which the worse half is dropped
WARMUP = 0.06  # that the rungs are for; a longer one moves them
RATIO = 2.0  # from one rate to the next beyond an edge
BEYOND, EXTENSIONS = 2, 3  # rates beyond an edge at a time, and how many times


@dataclass(frozen=True)
class SweepRows:
    """One tenant's rows.

    held_out: what candidates are compared on; None for the training rows, each before it is trained on. total: the
    steps of the whole run.
    """

    name: str
    training: PackedRows
    held_out: PackedRows | None
    total: int


@dataclass(frozen=True)
class TriedRate:
    """A rate, the steps that it made before it was dropped, and its last loss as a share of that at the start."""

    lr: float
    num_steps: int
    loss: float


@dataclass(frozen=True)
class Sweep:
    """What a sweep chose and what it cost.

    tried: every rate, the lowest first. num_tenants: how many it was made on. num_rows: rows that went through the
    model forward and backward.
    """

    lr: float
    tried: tuple[TriedRate, ...]
    num_tenants: int
    num_rows: int
    seconds: float

    @property
    def is_edge(self) -> bool:
        """Whether the choice is the lowest or the highest rate tried, so that a better one may lie beyond."""
        return self.lr in (self.tried[0].lr, self.tried[-1].lr)

    @property
    def text(self) -> str:
        """The choice, all that was tried and the cost, in one line."""
        losses = ", ".join(f"{one.lr:g}: {one.loss:.2f}" for one in self.tried)
        edge = ", the edge of what was tried" if self.is_edge else ""
        of = f" of {self.num_tenants} tenants" if self.num_tenants > 1 else ""
        return (
            f"lr {self.lr:g} by a sweep of {len(self.tried)} rates{of}{edge} (loss by that of the start, where each "
            f"was dropped: {losses}); {self.num_rows:,} rows, {self.seconds:.1f} s"
        )


def rungs(recipe: Recipe, rows: SweepRows) -> tuple[int, ...]:
    """The steps after which the worse half of the candidates is dropped.

    Where the training rows are what candidates are compared on, all are in the first pass.
    """
    late = max(0.0, recipe.warmup - WARMUP)
    steps = (ceil(min(1.0, share + late) * rows.total) for share in RUNGS)
    epoch, _ = num_steps(recipe, len(rows.training), 1)
    return tuple(step if rows.held_out is not None else min(step, epoch) for step in steps)


def sweep(recipe: Recipe, base: Base, everyone: Sequence[SweepRows], start: Adapter | None = None) -> Sweep:
    """Tries FACTORS times the recipe's rate on all of these tenants; one rate for all has the lowest mean loss.

    base: bare, and bare again afterwards; torch's random numbers are as before too. start: what a run begins from.
    """
    started = time.monotonic()
    place(base)
    with torch.random.fork_rng(), adapted(recipe, base, len(FACTORS) * len(everyone)) as bank, views_for_gradients():
        assert bank is not None
        search = RateSearch(recipe, base, bank, everyone, start)
        lr = search.run()
    tried = tuple(search.tried[rate] for rate in sorted(search.tried))
    return Sweep(lr, tried, len(everyone), search.fleet.traffic.rows, time.monotonic() - started)


class RateSearch:
    """The candidates of a sweep that train, by their rate and tenant, and what is known of every rate."""

    def __init__(
        self, recipe: Recipe, base: Base, bank: Bank, everyone: Sequence[SweepRows], start: Adapter | None
    ) -> None:
        self.recipe, self.everyone = recipe, {one.name: one for one in everyone}
        self.fleet = Fleet(recipe, base, bank, Journal(None, None), deque(), "", start, row=everyone[0].training.task)
        self.members: dict[tuple[float, str], Member] = {}
        self.tried: dict[float, TriedRate] = {}
        self.slots = list(bank.slots)

    def run(self) -> float:
        """Every rung; the rate that is left."""
        self.admit([_rounded(self.recipe.learning_rate * factor) for factor in FACTORS])
        for rung in range(len(RUNGS)):
            num_kept = len(FACTORS) // 2 ** (rung + 1)
            self.train(rung, num_kept)
        self.extend()
        return self.best()

    def extend(self) -> None:
        """Goes on beyond an edge that is left until the loss turns."""
        for _ in range(EXTENSIONS):
            rates = self.beyond()
            if not rates:
                return
            self.admit(rates)
            self.train(len(RUNGS) - 1, 1)

    def admit(self, rates: Sequence[float]) -> None:
        """Gives each rate a slot for every tenant."""
        for lr in rates:
            for name, rows in self.everyone.items():
                recipe = self.recipe.replaced(lr=lr, epochs=None, max_steps=rows.total)
                slot = self.slots.pop()
                self.members[lr, name] = self.fleet.seated(name, slot, recipe, rows.training, rows.held_out)

    def train(self, rung: int, num_kept: int) -> None:
        """Brings all that train to the rung, and drops all but the best num_kept rates."""
        targets = {name: rungs(self.recipe, rows)[rung] for name, rows in self.everyone.items()}
        self._first_steps()
        while behind := [m for m in self.members.values() if m.step < targets[m.name]]:
            self._round(behind)
        self._compare()
        ranked = sorted({lr for lr, _ in self.members}, key=lambda lr: self.tried[lr].loss)
        for lr in ranked[num_kept:]:
            self._drop(lr)

    def best(self) -> float:
        """The rate of the lowest loss of those that train, of all that were tried where no loss of theirs is one."""
        left = {lr for lr, _ in self.members} or set(self.tried)
        return min(left, key=lambda lr: (self.tried[lr].loss, lr))

    def beyond(self) -> list[float]:
        """The next rates where the best is an edge of those tried, none where the loss has turned."""
        best, rates = self.best(), sorted(self.tried)
        if not isfinite(self.tried[best].loss) or rates[0] < best < rates[-1]:
            return []
        ratio = RATIO if best == rates[-1] else 1 / RATIO
        return [_rounded(best * ratio**k) for k in range(1, BEYOND + 1)]

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
        """Notes the loss of every rate that trains."""
        losses = self._losses()
        for lr in {lr for lr, _ in self.members}:
            own = fmean(losses[lr, name] for name in self.everyone)
            self.tried[lr] = TriedRate(lr, self._num_steps(lr), own if isfinite(own) else inf)

    def _losses(self) -> Mapping[tuple[float, str], float]:
        """Each candidate's loss as a share of its first: of the later half of its steps, or on its held-out rows."""
        self.fleet.members = [m for m in self.members.values() if m.held_out is not None]
        watched = self.fleet.losses_on(lambda m: list(m.held_out or ())) if self.fleet.members else []
        return {
            key: (fmean(m.losses[-ceil(m.step / 2) :]) if m.held_out is None else watched[m.index]) / m.losses[0]
            for key, m in self.members.items()
        }

    def _num_steps(self, lr: float) -> int:
        return max(m.step for (rate, _), m in self.members.items() if rate == lr)

    def _drop(self, lr: float) -> None:
        for key in [key for key in self.members if key[0] == lr]:
            self.slots.append(self.members.pop(key).slot)


def _rounded(lr: float) -> float:
    """A rate that can be written down, and given again."""
    return float(f"{lr:.3g}")
