"""Halving keeps the best, and candidates of one method share a bank without touching each other."""

import pytest

from polyvera.search.candidate import Candidate, Sizer, sites_of
from polyvera.search.halving import RUNGS, Halving, Tried, _banks
from polyvera.train.test_rows import with_test_rows


@pytest.fixture
def halving(sizer: Sizer) -> Halving:
    [tenant] = with_test_rows(sizer.recipe)
    return Halving(sizer.recipe.replaced(batch_size=4), sizer.base, tenant, sizer, 8)


def candidates(sizer: Sizer) -> list[Candidate]:
    every = tuple(sites_of(sizer.recipe, sizer.base))
    first, second, *_ = every
    return [
        Candidate("vera", 4, (first,), "int4"),
        Candidate("vera", 4, (first, second), "int4"),
        Candidate("vera", 4, every, "int4", 8),
        Candidate("lora", 1, (second,), "int4"),
        Candidate("vera-tied", 4, (first, second), "int4"),
    ]


def test_candidates_of_a_method_share_a_bank(sizer: Sizer) -> None:
    assert [len(together) for together in _banks(candidates(sizer))] == [2, 1, 1, 1]


def test_the_best_stay(halving: Halving, sizer: Sizer) -> None:
    seen: list[Tried] = []
    first, second = halving.run(candidates(sizer), seen.append)
    assert len(seen) == len(first) + len(second) == 5 + max(1, 5 // RUNGS[0][1])
    assert [one.loss for one in first] == sorted(one.loss for one in first)
    assert second[0].candidate == first[0].candidate
    assert {one.num_steps for one in first} == {2} and {one.num_steps for one in second} == {4}
    assert all(one.num_bytes == sizer.file_bytes(one.candidate) for one in first)
