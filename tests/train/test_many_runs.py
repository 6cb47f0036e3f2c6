"""A recipe of many runs leaves open what each of them chooses."""

import pytest

from polyvera.errors import RecipeError
from polyvera.settings.field import STORE
from polyvera.settings.source import Source
from polyvera.train.many_runs import CHOSEN, for_many_runs
from polyvera.train.recipe import Recipe

VALUES = {"rank": 4, "hash_size": 8, "seed": 1, "run_seed": 1, "name": "x", "output": "x", "init_from": "x"}


@pytest.mark.parametrize("name", VALUES)
def test_what_each_run_chooses_is_refused(name: str) -> None:
    assert name in CHOSEN
    with pytest.raises(RecipeError, match=f"^{name} has no effect: an experiment"):
        for_many_runs(Recipe(model="m", data="d", **{name: VALUES[name]}), "an experiment")


def test_the_rest_stays_and_a_store_of_the_environment_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE.env, "shop")
    recipe = Recipe.read(Source({"model": "m", "data": "d", "max_steps": 3}))
    assert "store" in recipe.model_fields_set
    found = for_many_runs(recipe, "x")
    assert "store" not in found.model_fields_set
    assert found.max_steps == 3
