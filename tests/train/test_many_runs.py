"""A recipe of many runs leaves open what each of them chooses."""

import pytest

from polyvera.adapter.method import METHODS
from polyvera.errors import RecipeError
from polyvera.settings.field import STORE
from polyvera.settings.source import Source
from polyvera.train.many_runs import CHOSEN, for_many_runs, of_method
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


def test_a_store_is_where_a_made_basis_is_and_nothing_else() -> None:
    own = {"model": "m", "data": "d", "store": "shop"}
    with pytest.raises(RecipeError, match="^store has no effect: an experiment"):
        for_many_runs(Recipe(**own, fleet=True), "an experiment")
    assert for_many_runs(Recipe(**own, basis="pca"), "an experiment").store == "shop"


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_share_a_pair_have_the_made_one(method: str) -> None:
    recipe = Recipe(model="m", data="d", basis="pca", rank=16)
    shares = METHODS[method].shares_basis
    wanted = {"method": method, "rank": 16 if shares else None, "basis": "pca" if shares else None}
    assert of_method(recipe, method, None) == wanted
    assert of_method(recipe, method, 4) == {**wanted, "rank": 4}
    assert recipe.replaced(**of_method(recipe, method, None)).method == method
