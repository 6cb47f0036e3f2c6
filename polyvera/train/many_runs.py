"""for_many_runs: a recipe that many runs share, each of which is to choose the rest. No torch here."""

from __future__ import annotations

import os
from typing import Any

from polyvera.adapter.method import method_named
from polyvera.errors import RecipeError
from polyvera.settings.field import STORE
from polyvera.train.recipe import Recipe

# What an experiment chooses for each of its runs, or that has no use in it.
CHOSEN = (
    *("method", "rank", "hash_size", "seed", "run_seed", "full", "budget", "workers"),
    *("name", "alias", "stored", "init_from", "output"),
)
# What the making of a basis has no use for.
UNUSED = (
    *("validation", "test", "basis", "init", "hash_size", "full", "budget", "workers", "slots", "output"),
    *("init_from", "alias", "stored", "early_stopping", "eval_every", "save_every"),
)


def for_many_runs(recipe: Recipe, what: str) -> Recipe:
    """The recipe without a store that only the environment names. Raises RecipeError for a setting of CHOSEN.

    what: chooses those for each run, such as 'a measurement'. A store is where a made basis is looked for.
    """
    given = recipe.given()
    if recipe.basis is None and given.get("store") == os.environ.get(STORE.env):
        given.pop("store", None)
    unused = () if recipe.basis is not None else ("store",)
    chosen = next((name for name in (*CHOSEN, *unused) if name in given), None)
    if chosen is not None:
        raise RecipeError(f"{chosen} has no effect: {what} chooses it for each of its runs, or has no use for it")
    return Recipe(**given)


def of_method(recipe: Recipe, method: str, rank: int | None) -> dict[str, Any]:
    """Keys of a Recipe for a run of a method: the made basis of all runs, and its rank, where the method shares one.

    recipe: as pinned_for_many() gives it. rank: None takes the basis's or the method's own.
    """
    if recipe.basis is None or not method_named(method).shares_basis:
        return {"method": method, "rank": rank, "basis": None}
    return {"method": method, "rank": rank or recipe.rank, "basis": recipe.basis}
