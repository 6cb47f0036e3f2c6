"""A search stays in its budget, says how its ways compare, and its recipe trains the adapter that it found."""

from pathlib import Path

import pytest
import torch

from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.search.report import recipe_text
from polyvera.search.search import RANDOM, SALIENT, UNIFORM, SearchTask, search
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
