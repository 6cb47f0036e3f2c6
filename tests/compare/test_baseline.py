"""Baselines are rows of a table: choices of a recipe and the rate that is swept."""

import pytest

from polyvera.adapter.method import METHODS
from polyvera.compare.baseline import BASELINES, HEAD, PARTS
from polyvera.train.recipe import Recipe


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_a_recipe_with_a_rate_of_its_own(name: str) -> None:
    row = BASELINES[name]
    recipe = Recipe(model="x", data="y", **row.choices).replaced(**{row.rate: row.lr})
    assert getattr(recipe, row.rate) == row.lr
    assert name not in METHODS


def test_only_the_head_moves_in_a_probe() -> None:
    assert 0 < Recipe(model="x", data="y", **BASELINES[HEAD].choices).learning_rate < 1e-30


@pytest.mark.parametrize("name", BASELINES)
def test_what_has_no_numbers_of_its_own_is_not_swept(name: str) -> None:
    row = BASELINES[name]
    assert row.is_swept == bool(row.trains)
    assert {*row.trains} <= {*PARTS}
