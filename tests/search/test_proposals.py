"""Every proposal fits the budget, whatever the way; what can't fit is refused before anything is trained."""

import pytest

from polyvera.errors import RecipeError
from polyvera.search.candidate import Sizer, sites_of
from polyvera.search.proposals import Proposer, arms, most_that_fits

BUDGETS = (2100, 3000)


def proposer(sizer: Sizer, num_bytes: int) -> Proposer:
    return Proposer(sizer, dict(sites_of(sizer.recipe, sizer.base)), num_bytes, "int4")


@pytest.mark.parametrize("num_bytes", BUDGETS)
@pytest.mark.parametrize("way", ["uniform", "salient", "random"])
def test_what_is_proposed_fits(sizer: Sizer, num_bytes: int, way: str) -> None:
    own = proposer(sizer, num_bytes)
    saliency = {name: float(i + 1) for i, name in enumerate(own.shapes)}
    found = {
        "uniform": own.uniform,
        "salient": lambda: own.salient(saliency, 8),
        "random": lambda: own.random(8, 0),
    }[way]()
    assert len(found) == len(set(found)) == (8 if way != "uniform" else len(found)) > 0
    assert all(sizer.file_bytes(one) <= num_bytes for one in found)
    assert all(set(one.sites) <= set(own.shapes) for one in found)


def test_a_knapsack_takes_what_is_worth_most(sizer: Sizer) -> None:
    own = proposer(sizer, 2100)
    best = list(own.shapes)[3]
    value = dict.fromkeys(own.shapes, 1e-6) | {best: 1.0}
    for arm in arms("int4"):
        packed = own._packed(arm, value)
        assert packed is None or best in packed.sites


def test_chance_is_the_same_for_the_same_seed(sizer: Sizer) -> None:
    own = proposer(sizer, 2500)
    assert own.random(4, 1) == own.random(4, 1) != own.random(4, 2)


def test_too_few_bytes_are_refused(sizer: Sizer) -> None:
    with pytest.raises(RecipeError, match="bytes=100: no adapter fits"):
        proposer(sizer, 100).uniform()


@pytest.mark.parametrize(("fit", "found"), [(99, 9), (9, 9), (8, 8), (4, 4), (3, 3), (2, None)])
def test_the_most_that_fits(fit: int, found: int | None) -> None:
    asked: list[int] = []
    assert most_that_fits(3, 9, lambda size: asked.append(size) or size <= fit) == found
    assert len(asked) <= 5 and most_that_fits(3, 2, lambda size: True) is None
