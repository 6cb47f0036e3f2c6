"""Halving keeps the best, and candidates of one method share a bank without touching each other."""

import pytest

from polyvera.search.candidate import Candidate, Sizer, sites_of
from polyvera.search.halving import FEWEST, Halving, Tried, _banks, _kept
from polyvera.train.tell import to_nobody
from polyvera.train.test_rows import with_test_rows


@pytest.fixture
def halving(sizer: Sizer) -> Halving:
    [tenant] = with_test_rows(sizer.recipe, to_nobody)
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
    assert len(seen) == len(first) + len(second) == 5 + FEWEST
    assert [one.loss for one in first] == sorted(one.loss for one in first)
    assert {one.candidate for one in second} == {one.candidate for one in first[:FEWEST]}
    assert {one.num_steps for one in first} == {2} and {one.num_steps for one in second} == {4}
    assert all(one.num_bytes == sizer.file_bytes(one.candidate) for one in first)


def test_the_best_rival_goes_on(sizer: Sizer) -> None:
    every = candidates(sizer)
    assert _kept(every, []) == every[:3]
    assert _kept(every, every[3:]) == every[:4]
    assert _kept(every, every[2:]) == every[:3]
    assert _kept(every * 4, every[4:]) == (every * 4)[:5]
