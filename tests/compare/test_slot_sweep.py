"""A slot of a sweep is the run that its rate alone gives; a rate that diverges is no choice."""

from math import inf
from typing import Any

import pytest

from polyvera.adapter.method import METHODS
from polyvera.compare.slot_sweep import slot_sweep, takes_slots
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

RATES = (1e-3, 3e-2)


def recipe_of(choices: dict[str, Any], **more: Any) -> Recipe:
    return Recipe(**choices["settings"], data=choices["task"]["count"]["data"], **more)


@pytest.mark.parametrize("method", METHODS)
def test_a_slot_is_the_run_of_its_rate(choices: dict[str, Any], method: str) -> None:
    recipe = recipe_of(choices, method=method, rank=2)
    for found, lr in zip(slot_sweep(recipe, RATES), RATES, strict=True):
        alone = train(recipe.replaced(lr=lr), progress=False)
        assert found.eval_loss == pytest.approx(alone.scores["eval_loss"], rel=1e-4)
        assert (found.lr, found.num_params, found.num_steps) == (lr, alone.num_trained, alone.num_steps)


def test_a_rate_that_diverges_has_no_loss(choices: dict[str, Any]) -> None:
    low, high = slot_sweep(recipe_of(choices, rank=2, method=next(iter(METHODS))), (1e-3, 3e38))
    assert low.eval_loss < inf
    assert high.eval_loss == inf


@pytest.mark.parametrize("more", [{"full": True}, {"stored": "int8", "name": "x"}])
def test_what_has_no_slots_is_trained_alone(choices: dict[str, Any], more: dict[str, Any]) -> None:
    assert takes_slots(recipe_of(choices))
    assert not takes_slots(recipe_of(choices, **more))
