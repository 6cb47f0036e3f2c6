"""train_here: a fleet in this process. FleetResult: what became of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.adapter import Adapter
from polyvera.errors import message_of
from polyvera.evaluate.fleet_scores import TenantScores
from polyvera.model.load import Base, place
from polyvera.store.registry import Registry
from polyvera.train.fleet.fleet import SLOTS, Fleet, Watch
from polyvera.train.fleet.journal import SKIPPED, Journal, Outcome
from polyvera.train.fleet.learning_rate import LearningRate, fleet_rate, kept_rate
from polyvera.train.fleet.traffic import Traffic
from polyvera.train.preparation import adapted, base_for, check_mixes, check_router, pinned
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import seed_everything
from polyvera.train.tell import Tell, tell_form, to_stderr, told_once
from polyvera.train.tenants import Tenant, first_table


@dataclass(frozen=True)
class FleetResult:
    """What became of every tenant, and what it took.

    outcomes: one for each tenant, with its adapter, or with the reference under which it was published.
    traffic: what went through the model.
    seconds: of the whole run.
    base: the model, bare again; None where other processes trained.
    scores: of the finished tenants' adapters on their test rows, where the recipe has such rows.
    rate: the learning rate and how it was chosen; None where no tenant was trained.
    """

    outcomes: tuple[Outcome, ...]
    traffic: Traffic
    seconds: float
    base: Base | None = None
    scores: tuple[TenantScores, ...] = ()
    rate: LearningRate | None = None

    def of(self, status: str) -> list[Outcome]:
        """The tenants with that status: 'finished', 'skipped' or 'quarantined'."""
        return [outcome for outcome in self.outcomes if outcome.status == status]


def train_here(
    recipe: Recipe,
    everyone: Sequence[Tenant],
    *,
    base: Base | None = None,
    registry: Registry | None = None,
    start: Callable[[], Adapter | None] = lambda: None,
    resume: bool = False,
    watch: Watch = lambda fleet: None,
    tell: Tell = to_stderr,
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    sites: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> FleetResult:
    """Trains every tenant; arguments as train_fleet() has them. own: settings of a tenant's own, by its name.
    sites: the layers that a tenant adapts, by its name; all by default.

    registry: where adapters go; None leaves them in the outcomes. start: called for the adapter that all begin from,
    unless the run that is resumed has kept it.
    """
    with pinned(recipe) as recipe:
        return _train_here(recipe, everyone, base, registry, start, resume, watch, tell, own, sites)


def _train_here(
    recipe: Recipe,
    everyone: Sequence[Tenant],
    base: Base | None,
    registry: Registry | None,
    start: Callable[[], Adapter | None],
    resume: bool,
    watch: Watch,
    tell: Tell,
    own: Mapping[str, Mapping[str, Any]],
    sites: Mapping[str, Collection[str]],
) -> FleetResult:
    started = time.monotonic()
    seed_everything(recipe.run_seed)
    journal = Journal(recipe.folder, registry, "" if recipe.name is None else f"{recipe.name}/", recipe.stored)
    journal.open(recipe, resume=resume)
    begun = journal.start(start)
    line = [tenant for tenant in everyone if tenant.name not in journal.outcomes]
    first = first_table(line, recipe)
    traffic, rate = Traffic(), None
    if first is None:
        _skip_all(line, recipe, journal)
    else:
        base = base_for(recipe, first, base)
        if len(everyone) > 1:
            check_mixes(base)
        check_router(base, first.row)
        place(base)
        tell_form(first, base.tokenizer, tell)
        first = first.suited(base.model)
        loaded, kind = base, first.kind
        rate = kept_rate(recipe.folder, lambda: fleet_rate(recipe, loaded, line, kind, begun, tell), resume=resume)
        tell(rate.text)
        recipe = recipe.replaced(lr=rate.lr)
        with adapted(recipe, base, min(recipe.slots or SLOTS, len(line))) as bank:
            assert bank is not None
            fleet = Fleet(
                recipe,
                base,
                bank,
                journal,
                deque(line),
                kind,
                begun,
                traffic=traffic,
                row=first.row,
                own=own,
                on_tables=told_once(tell),
                sites=sites,
            )
            fleet.run(watch)
    return FleetResult(tuple(journal.outcomes.values()), traffic, time.monotonic() - started, base, rate=rate)


def _skip_all(line: Iterable[Tenant], recipe: Recipe, journal: Journal) -> None:
    for tenant in line:
        try:
            tenant.tables(recipe)
        except Exception as error:
            journal.record(Outcome(tenant.name, SKIPPED, message_of(error)))
