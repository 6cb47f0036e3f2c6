"""A window tries rates to the end: each candidate is the run of its rate, and an edge that is best is extended."""

from collections.abc import Mapping
from math import inf

import pytest
import torch

from polyvera.dimension.rate_window import RateWindow, loss_of
from polyvera.model.load import Base
from polyvera.train.fleet.journal import FINISHED, QUARANTINED, Outcome
from polyvera.train.recipe import Recipe
from polyvera.train.tell import to_nobody
from polyvera.train.tenants import only_tenant
from polyvera.train.trainer import train

CHOICES = {"model": "tiny", "rank": 4, "targets": "all-linear", "max_steps": 3, "batch_size": 4}


def window(data: str, base: Base, **choices: object) -> RateWindow:
    recipe = Recipe(**{**CHOICES, "data": data, **choices})
    return RateWindow(recipe.replaced(fleet=True), base, [only_tenant(recipe)], to_nobody)


def test_each_candidate_is_the_run_of_its_rate(base: Base, counting: str) -> None:
    found = window(counting, base)
    found.train({"": 0.04}, extends=False)
    assert sorted(found.tried[""]) == [0.02, 0.04, 0.08]
    for lr, outcome in found.tried[""].items():
        alone = train(Recipe(**CHOICES, data=counting, lr=lr), base=base, progress=False)
        assert outcome.adapter is not None and outcome.adapter.lr == lr
        assert torch.allclose(outcome.adapter.flat, alone.adapter.flat, atol=1e-5)
    lr, adapter = found.best("")
    assert loss_of(found.tried[""][lr]) == min(map(loss_of, found.tried[""].values()))
    assert adapter is found.tried[""][lr].adapter


def test_an_edge_is_extended(base: Base, counting: str) -> None:
    found = window(counting, base)
    found.train({"": 1e-4}, extends=True)
    assert len(found.tried[""]) > 3 and max(found.tried[""]) > 2e-4


def test_a_wide_window_looks_for_its_centre_first(base: Base, counting: str) -> None:
    found = window(counting, base)
    found.train({"": 1e-4}, extends=False, wide=True)
    tried = found.tried[""]
    first = {1e-4, 8e-4, 64e-4}
    centre = min(first, key=lambda lr: loss_of(tried[lr]))
    assert set(tried) == first | {centre / 2, centre, centre * 2} and centre > 1e-4


def test_a_given_rate_is_the_only_one(base: Base, counting: str) -> None:
    found = window(counting, base, lr=0.05)
    found.train({"": 1.0}, extends=True)
    assert list(found.tried[""]) == [0.05]


TRIED: Mapping[str, tuple[dict[float, float], list[float]]] = {
    "turned": ({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, []),
    "low edge": ({1.0: 1.0, 2.0: 2.0}, [0.5]),
    "high edge": ({1.0: 2.0, 2.0: 1.0}, [4.0]),
    "nothing": ({1.0: inf, 2.0: inf}, []),
}


@pytest.mark.parametrize("case", TRIED)
def test_the_next_rate_lies_beyond_an_edge(base: Base, counting: str, case: str) -> None:
    losses, expected = TRIED[case]
    adapter = train(Recipe(**CHOICES, data=counting, lr=0.05), base=base, progress=False).adapter
    found = window(counting, base)
    found.tried = {"": {lr: Outcome("", FINISHED, train_loss=loss, adapter=adapter) for lr, loss in losses.items()}}
    assert found._beyond("") == expected


def test_a_broken_run_has_no_loss() -> None:
    assert loss_of(Outcome("", QUARANTINED, "its loss is nan")) == inf
