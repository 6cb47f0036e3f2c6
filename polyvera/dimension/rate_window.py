"""RateWindow: every tenant at several learning rates to the end, the candidates as slots of one bank.

A sweep that drops candidates early costs less, but the few numbers of a small hash learn late and at high rates. So a
point is trained at three rates to its last step and takes the one of the lowest loss; where that is the highest or the
lowest, the next one beyond it is tried, until the loss turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite

from polyvera.adapter.adapter import Adapter
from polyvera.compare.bracket import beyond
from polyvera.model.load import Base
from polyvera.train.fleet.journal import Outcome
from polyvera.train.fleet.one_process import train_here
from polyvera.train.recipe import Recipe
from polyvera.train.tell import Tell
from polyvera.train.tenants import Tenant

RATIO, WIDE = 2.0, 8.0
EXTENSIONS = 5


@dataclass
class RateWindow:
    """One run of many tenants at rates around one of their own.

    recipe: of the run. tried: what became of each tenant at each rate.
    """

    recipe: Recipe
    base: Base
    everyone: Sequence[Tenant]
    tell: Tell
    tried: dict[str, dict[float, Outcome]] = field(default_factory=dict)

    def train(self, centres: Mapping[str, float], *, extends: bool, wide: bool = False) -> None:
        """Tries three rates around each tenant's centre, or the recipe's rate alone where it gives one.

        extends: whether to go on beyond an edge that is best. wide: whether the centre is to be looked for first, among
        it and its multiples by powers of WIDE: far below the best rate all losses are alike, and turn by chance.
        """
        if not self.recipe.leaves_lr_open:
            self._try({tenant.name: [self.recipe.learning_rate] for tenant in self.everyone})
            return
        if wide:
            self._try({name: [_rounded(lr * WIDE**k) for k in (0, 1, 2)] for name, lr in centres.items()})
            centres = {name: found[0] if (found := self.best(name)) else lr for name, lr in centres.items()}
        around = {name: {_rounded(lr * RATIO**k) for k in (-1, 0, 1)} for name, lr in centres.items()}
        self._try({name: sorted(rates - set(self.tried.get(name, ()))) for name, rates in around.items()})
        for _ in range(EXTENSIONS if extends else 0):
            further = {name: rates for name in centres if (rates := self._beyond(name))}
            if not further:
                return
            self._try(further)

    def best(self, tenant: str) -> tuple[float, Adapter] | None:
        """The rate of the lowest loss and its adapter; None where none ended in numbers."""
        lr = min(self.tried[tenant], key=lambda lr: (loss_of(self.tried[tenant][lr]), lr))
        adapter = self.tried[tenant][lr].adapter
        return None if adapter is None else (lr, adapter)

    def problem(self, tenant: str) -> str:
        """Why none did."""
        return next((one.problem for one in self.tried[tenant].values() if one.problem), "")

    def _try(self, rates: Mapping[str, Iterable[float]]) -> None:
        """Trains tenants at these rates, all in one bank."""
        named = {tenant.name: tenant for tenant in self.everyone}
        pairs = [(name, lr) for name, own in rates.items() for lr in own]
        line = [replace(named[name], name=_candidate(name, lr)) for name, lr in pairs]
        own = {_candidate(name, lr): {"lr": lr} for name, lr in pairs}
        recipe = self.recipe.replaced(lr=self.recipe.learning_rate)
        result = train_here(recipe, line, base=self.base, own=own, tell=self.tell)
        outcomes = {outcome.name: outcome for outcome in result.outcomes}
        for name, lr in pairs:
            self.tried.setdefault(name, {})[lr] = outcomes[_candidate(name, lr)]

    def _beyond(self, tenant: str) -> list[float]:
        """The next rate where the best is an edge, none where the loss has turned."""
        further = beyond({lr: loss_of(outcome) for lr, outcome in self.tried[tenant].items()})
        return [] if further is None else [_rounded(further)]


def loss_of(outcome: Outcome) -> float:
    """On the validation rows where there are any, else of the last steps; inf where training broke off."""
    loss = outcome.train_loss if outcome.eval_loss is None else outcome.eval_loss
    return inf if loss is None or outcome.adapter is None or not isfinite(loss) else loss


def _candidate(tenant: str, lr: float) -> str:
    return f"{tenant} at {lr:g}"


def _rounded(lr: float) -> float:
    """A rate that can be written down, and given again."""
    return float(f"{lr:.4g}")
