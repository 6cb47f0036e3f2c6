"""for_many_runs: a recipe that many runs share, each of which is to choose the rest. No torch here."""

from __future__ import annotations

import os

from polyvera.errors import RecipeError
from polyvera.settings.field import STORE
from polyvera.train.recipe import Recipe

# What an experiment chooses for each of its runs, or that has no use in it.
CHOSEN = (
    *("method", "rank", "hash_size", "basis", "seed", "run_seed", "full", "budget", "workers"),
    *("name", "alias", "store", "stored", "init_from", "output"),
)
# What the making of a basis has no use for.
UNUSED = (
    *("validation", "test", "basis", "init", "hash_size", "full", "budget", "workers", "slots", "output"),
    *("init_from", "alias", "stored", "early_stopping", "eval_every", "save_every"),
)


def for_many_runs(recipe: Recipe, what: str) -> Recipe:
    """The recipe without a store that only the environment names. Raises RecipeError for a setting of CHOSEN.

    what: chooses those for each run, such as 'a measurement'.
    """
    given = recipe.given()
    if given.get("store") == os.environ.get(STORE.env):
        given.pop("store", None)
    chosen = next((name for name in CHOSEN if name in given), None)
    if chosen is not None:
        raise RecipeError(f"{chosen} has no effect: {what} chooses it for each of its runs, or has no use for it")
    return Recipe(**given)
