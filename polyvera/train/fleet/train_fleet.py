"""train_fleet: an adapter for every tenant of a recipe, trained in this process or on Ray workers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from polyvera.adapter.adapter import Adapter
from polyvera.errors import RecipeError, message_of
from polyvera.evaluate.fleet_scores import TenantScores, fleet_scores
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.destination import check_folder, check_store
from polyvera.train.fleet.fleet import Watch
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.fleet.learning_rate import unswept_rate
from polyvera.train.fleet.one_process import FleetResult, train_here
from polyvera.train.fleet.ray_workers import train_on_workers
from polyvera.train.preparation import base_for, check_base, check_start, registry_of
from polyvera.train.recipe import Recipe
from polyvera.train.tell import Tell, to_stderr
from polyvera.train.tenants import Tenant, tenants
from polyvera.train.warm_start import warm_start


def train_fleet(
    recipe: Recipe,
    *,
    everyone: Sequence[Tenant] | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    start: Adapter | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    tell: Tell = to_stderr,
    on_score: Callable[[TenantScores], None] = lambda score: None,
) -> FleetResult:
    """Trains every tenant of a recipe with fleet=True; one that cannot be trained never stops the others.

    recipe: every choice of the run. Adapters are published as they are finished, under recipe.name/tenant in
        recipe.store, where the recipe gives a name or a store; else the outcomes hold them. recipe.workers spreads the
        tenants over Ray workers. recipe.test scores each adapter at the end.
    everyone: the tenants; by default those of recipe.data.
    base: a model that is loaded already, instead of recipe.model; it is bare again afterwards.
    registry: where adapters are published, instead of recipe.store; under the tenants' own names without a recipe.name.
    start: the adapter that all begin from, instead of recipe.init_from.
    resume: goes on after a kill, from recipe.output.
    watch: called with the Fleet after each round.
    tell: called with each line that the run says of itself: the form of its prompts, how its learning rate was chosen.
    on_score: called with each tenant's scores on its test rows.

    Raises RecipeError, DataError, TargetError or another PolyveraError before the first round.
    """
    line = tenants(recipe, tell) if everyone is None else list(everyone)
    if registry is None and {"name", "store"} & recipe.model_fields_set:
        registry = registry_of(recipe)
    _check(recipe, base, registry, start)

    def begun() -> Adapter | None:
        return start or warm_start(recipe, registry or registry_of(recipe))

    if recipe.workers is None:
        given = watch or (lambda fleet: None)
        result = train_here(
            recipe, line, base=base, registry=registry, start=begun, resume=resume, watch=given, tell=tell
        )
    elif base is not None or watch is not None or registry is None:
        raise RecipeError(
            f"workers={recipe.workers} trains in other processes, which load the model and publish what they trained: "
            "leave base and watch out, and give name, store or registry"
        )
    else:
        rate = unswept_rate(recipe)
        assert rate is not None  # workers make no sweep
        tell(rate.text)
        result = train_on_workers(recipe.replaced(lr=rate.lr), line, store=registry.url, start=begun, resume=resume)
    scores = []
    for score in _scored(recipe, line, result, registry):
        on_score(score)
        scores.append(score)
    return replace(result, scores=tuple(scores))


def _check(recipe: Recipe, base: Base | None, registry: Registry | None, start: Adapter | None) -> None:
    if not recipe.fleet:
        raise RecipeError(
            "fleet=True is missing: train_fleet() trains an adapter for every tenant, train() one adapter"
        )
    if registry is None and "stored" in recipe.model_fields_set:
        raise RecipeError(
            f"stored={recipe.stored!r} has no effect where nothing is published: give name, store or registry, or "
            "leave it out"
        )
    check_base(recipe, base)
    check_start(recipe, start)
    if recipe.folder is not None:
        check_folder(recipe.folder)
    if registry is not None:
        check_store(registry)


def _scored(
    recipe: Recipe, everyone: Sequence[Tenant], result: FleetResult, registry: Registry | None
) -> Iterator[TenantScores]:
    """The scores of the finished tenants that have test rows."""
    finished = {outcome.name: outcome for outcome in result.of(FINISHED)}
    asked = [tenant for tenant in everyone if tenant.test is not None and tenant.name in finished]
    rows = {tenant.name: table for tenant in asked if (table := tenant.tables(recipe).test) is not None}
    if not rows:
        return
    adapters = {}
    for name in rows:
        adapter = finished[name].adapter
        if adapter is None and registry is not None:
            adapter = registry.get(finished[name].reference)
        assert adapter is not None
        adapters[name] = adapter
    first = next(iter(rows.values()))
    base = base_for(recipe, first, result.base)
    yield from fleet_scores(base, adapters, rows, skip=_tell)


def _tell(name: str, error: Exception) -> None:
    warnings.warn(f"{name} is trained, and not scored: {message_of(error)}", stacklevel=2)
