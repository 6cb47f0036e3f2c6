"""halved: candidates that train beside each other, the worse of them dropped at each rung (Jamieson 2016).

Candidates of one method and rank are slots of one bank: they share A and B, and a slot's mask leaves out the layers
that are not its own. A hash is over its candidate's own letters, and tied letters belong to several layers, so these
have a bank for themselves. A rung trains anew, for a share of the steps of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from polyvera.adapter.method import METHODS
from polyvera.model.load import Base
from polyvera.search.candidate import Candidate, Sizer
from polyvera.train.fleet.journal import Outcome
from polyvera.train.fleet.one_process import train_here
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant

RUNGS = (0.25, 0.5)  # shares of a run's steps
DIVISOR, FEWEST = 4, 3  # a quarter goes on, but no fewer: after so few steps the order is not that of the end
FACTORS = (1.0, 3.0)  # of a method's own rate


@dataclass(frozen=True)
class Tried:
    """A candidate at a rung: its lowest validation loss over the rates, the steps that it trained, its file's bytes."""

    candidate: Candidate
    loss: float
    num_steps: int
    num_bytes: int


@dataclass(frozen=True)
class Halving:
    """What candidates train on.

    recipe: of a run of num_steps, with validation rows. sizer: of its candidates.
    """

    recipe: Recipe
    base: Base
    tenant: Tenant
    sizer: Sizer
    num_steps: int

    def run(
        self, candidates: Sequence[Candidate], watch: Callable[[Tried], None], rivals: Sequence[Candidate] = ()
    ) -> list[list[Tried]]:
        """Each rung's candidates, the best of them first.

        watch: called with each that was tried. rivals: those of the candidates of which the best always goes on, so
        that what beats it has trained as long.
        """
        left, rungs = list(candidates), list[list[Tried]]()
        for share in RUNGS:
            rungs.append(sorted(self._rung(left, ceil(share * self.num_steps), watch), key=lambda one: one.loss))
            left = _kept([one.candidate for one in rungs[-1]], rivals)
        return rungs

    def _rung(self, candidates: Sequence[Candidate], num_steps: int, watch: Callable[[Tried], None]) -> Iterator[Tried]:
        for together in _banks(candidates):
            losses = self._losses(together, num_steps)
            for candidate, loss in zip(together, losses, strict=True):
                one = Tried(candidate, loss, num_steps, self.sizer.file_bytes(candidate))
                watch(one)
                yield one

    def _losses(self, together: Sequence[Candidate], num_steps: int) -> list[float]:
        """Of each candidate in one bank, the lowest loss over the rates."""
        first = together[0]
        union = tuple(name for name in self.sizer.layers if any(name in one.sites for one in together))
        choices = self.sizer.choices(replace(first, sites=union))
        recipe = self.recipe.replaced(**choices, epochs=None, max_steps=num_steps, fleet=True)
        recipe = recipe.replaced(lr=recipe.learning_rate)
        names = {f"{i} at {factor:g}": (i, factor) for i in range(len(together)) for factor in FACTORS}
        result = train_here(
            recipe,
            [replace(self.tenant, name=name) for name in names],
            base=self.base,
            tell=lambda line: None,
            own={name: {"lr": recipe.learning_rate * factor} for name, (_, factor) in names.items()},
            sites={name: together[i].sites for name, (i, _) in names.items()} if len(together) > 1 else {},
        )
        found = [inf] * len(together)
        for outcome in result.outcomes:
            i, _ = names[outcome.name]
            found[i] = min(found[i], _loss(outcome))
        return found


def _kept(ranked: Sequence[Candidate], rivals: Sequence[Candidate]) -> list[Candidate]:
    """The best quarter, and the best of the rivals."""
    num = max(FEWEST, len(ranked) // DIVISOR)
    others = [one for one in ranked[num:] if one in rivals]
    return [*ranked[:num], *([] if any(one in rivals for one in ranked[:num]) else others[:1])]


def _banks(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """The candidates by the bank that they train in."""
    groups: dict[object, list[Candidate]] = {}
    for i, one in enumerate(candidates):
        apart = one.hash_size is not None or bool(METHODS[one.method].tied)
        groups.setdefault(i if apart else (one.method, one.rank), []).append(one)
    yield from groups.values()


def _loss(outcome: Outcome) -> float:
    return inf if outcome.adapter is None or outcome.eval_loss is None else outcome.eval_loss
