"""Which candidates of a sweep go on after a rung, and what the best of them says about the whole run. No torch.

High rates lead at first and fall behind later. Adam moves a number by at most the sum of its steps' rates, and the best
rate falls with a power of such a sum: 1/2 where it is what bounds the loss (Zinkevich 2003, theorem 1), 0.32 as
measured over token horizons (Bjorck 2024), which our runs fit. So those that go on are the best and some below it; and
with m the sum of the schedule's factors up to a rung, M up to the end, the best there times (m/M)^0.32 stands for the
best of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Rung:
    """share: of a run's steps, at which rates are compared. num_above, num_below: those beside the best that go on."""

    share: float
    num_above: int
    num_below: int


RUNGS = (Rung(0.1, 1, 2), Rung(0.15, 0, 1), Rung(0.25, 0, 0))


MIN_LOSSES, POWER = 4, 0.32


def moved(factor: Callable[[int], float], num_steps: int, total: int) -> float:
    """The share of a run's movement that its first num_steps make. factor: of the schedule at a step, from 0."""
    return sum(map(factor, range(num_steps))) / sum(map(factor, range(total)))


def whole_run_rate(lr: float, movement: float) -> float:
    """The rate for a whole run where lr is the best after this share of its movement, to three digits."""
    return float(f"{lr * movement**POWER:.3g}")


def going_on(rates: Collection[float], best: float, rung: Rung) -> set[float]:
    """The rates that are left after a rung."""
    ordered = sorted(rates)
    at = ordered.index(best)
    return {*ordered[max(0, at - rung.num_below) : at + rung.num_above + 1]}


def best_rate(losses: Mapping[float, Sequence[float]], expected: float) -> float:
    """The rate of the lowest mean loss; of those that are not distinguishable from it, the one nearest to `expected`.

    losses: of each rate on the same rows, in the same order. Two are not distinguishable where the mean of their
    differences is within one standard error (Breiman 1984, the 1 SE rule), for which there have to be MIN_LOSSES of
    them. Without any finite loss, the lowest rate.
    """
    finite = {lr: own for lr, own in losses.items() if isfinite(fmean(own))}
    if not finite:
        return min(losses)
    lowest = min(finite, key=lambda lr: (fmean(finite[lr]), lr))
    alike = [lr for lr in finite if _is_tie(finite[lr], finite[lowest])]
    return min(alike, key=lambda lr: (abs(log(lr / expected)), lr))


def _is_tie(losses: Sequence[float], lowest: Sequence[float]) -> bool:
    differences = [x - y for x, y in zip(losses, lowest, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) >= MIN_LOSSES else 0.0
    return fmean(differences) <= error
