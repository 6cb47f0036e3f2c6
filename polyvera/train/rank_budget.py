"""Budget: the settings of a shrinking rank budget. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from polyvera.adapter.method import METHODS, OWN_WIDTH, Method
from polyvera.settings.field import Count, Described, Positive
from polyvera.settings.model import SettingsTable, Word

ADAPTER = "Adapter"  # the group of a recipe's settings that these are of
Share = Annotated[float, Gt(0.0), Lt(1.0)]


class Budget(SettingsTable):
    """A shrinking rank budget for a method that trains d (AdaLoRA, Zhang 2023, section 3.3).

    None takes 10 %, 30 % and 1 % of the run for warmup, final and interval, and 0.1 for orthogonal where A and B are
    trained.
    """

    rank: Annotated[Positive, Described("Average rank over the layers that a shrinking budget ends at.", ADAPTER)]
    warmup: Annotated[Annotated[int, Ge(0)] | None, Described("Steps at the full budget.", ADAPTER)] = None
    final: Annotated[Count | None, Described("Steps at the final budget.", ADAPTER)] = None
    interval: Annotated[Count | None, Described("Steps from one pruning to the next.", ADAPTER)] = None
    beta1: Annotated[Share, Described("Smoothing of the sensitivity.", ADAPTER)] = 0.85
    beta2: Annotated[Share, Described("Smoothing of its uncertainty.", ADAPTER)] = 0.85
    orthogonal: Annotated[Annotated[float, Ge(0.0)] | None, Described("Weight of ‖PᵀP - I‖ + ‖QQᵀ - I‖.", ADAPTER)] = (
        None
    )


def budget_problems(budget: Budget, row: Method, rank: int, word: Word) -> Iterator[str]:
    """What of a budget does not go with a method of that rank, one line each. word: a setting as the user wrote it."""
    if not row.shrinks:
        able = ", ".join(name for name, one in METHODS.items() if one.shrinks)
        lacking = f"needs a method that trains d for every rank, which {row.name} does not"
        yield f"{word('budget')} {lacking}; those that do: {able}"
    if OWN_WIDTH < rank < budget.rank:
        yield f"{word('budget.rank')}={budget.rank:g} is more than the rank of {rank} that the run starts with"
    if budget.orthogonal and not {"A", "B"} <= set(row.trained):
        own = word("budget.orthogonal")
        yield f"{own}={budget.orthogonal} has no effect on {row.name}, whose A and B are frozen: leave it out"
