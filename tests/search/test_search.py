"""A search stays in its budget, says how its ways compare, and its recipe trains the adapter that it found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import BasisKey
from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.search.report import recipe_text
from polyvera.search.search import RANDOM, SALIENT, UNIFORM, SearchTask, search, winning_recipe
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import rounded

BYTES = 2600


def test_a_search_finds_what_fits(base: Base, tmp_path: Path, counting: str) -> None:
    task = SearchTask(
        Recipe(model="tiny", data=counting, max_steps=4, batch_size=4), BYTES, num_proposals=3, num_seeds=2
    )
    found = search(task, base=base)
    assert [way.name for way in found.ways] == [SALIENT, UNIFORM, RANDOM]
    assert all(way.num_bytes <= BYTES and len(way.scores) == len(way.lrs) == 2 for way in found.ways)
    assert sum(found.saliency.values()) == pytest.approx(1)
    (tmp_path / "recipe.toml").write_text(recipe_text(found))
    recipe = Recipe.from_toml(tmp_path / "recipe.toml")
    assert (recipe.name, recipe.stored, recipe.data) == ("counting", "int4", counting)
    best = found.ways[0]
    assert recipe.spec().method == best.winner.method and recipe.lr == best.lrs[0]
    assert torch.equal(rounded(best.adapter, "int4").flat, best.adapter.flat)


def test_a_search_on_a_made_basis_names_it(base: Base, tmp_path: Path, counting: str) -> None:
    registry = Registry(tmp_path / "shop")
    basis = draw_basis(BasisKey("orthogonal", 0, 8, 64, 64))
    sha256 = registry.bases.put(basis, "pca")
    own = {"basis": "pca", "store": registry.url}
    recipe = Recipe(model="tiny", data=counting, max_steps=4, batch_size=4, **own)
    found = search(SearchTask(recipe, BYTES, num_proposals=8, num_seeds=1), base=base)
    tried = [one for way in found.ways for rung in way.rungs for one in rung]
    shared = [one for one in tried if METHODS[one.candidate.method].shares_basis]
    assert shared and {one.candidate.rank for one in shared} == {8}
    assert all(way.num_bytes <= BYTES for way in found.ways)
    for way in found.ways:
        made = way.adapter.spec.made_basis
        assert made == (sha256 if METHODS[way.winner.method].shares_basis else "")
        won = winning_recipe(replace(found, ways=(way,)))
        assert (won.basis or "") == made and won.store == registry.url


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_bytes": 0}, "at least a byte"),
        ({"recipe": {"rank": 4}}, "rank has no effect"),
        ({"recipe": {"fleet": True}}, "one task"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict, words: str) -> None:
    recipe = Recipe(model="tiny", data="x", **changes.pop("recipe", {}))
    with pytest.raises(RecipeError, match=words):
        SearchTask(recipe, **{"num_bytes": BYTES, **changes})
