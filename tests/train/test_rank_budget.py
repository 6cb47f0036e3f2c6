"""budget_problems: what of a rank budget a method cannot use."""

import pytest

from polyvera.adapter.method import METHODS
from polyvera.train.rank_budget import Budget, budget_problems


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_a_budget_needs_a_trained_d_and_rank_to_spare(row):
    found = list(budget_problems(Budget(rank=8), row, 4, str))
    assert sum("more than the rank of 4" in line for line in found) == 1
    assert any("needs a method that trains d for every rank" in line for line in found) == (not row.shrinks)
    assert len(list(budget_problems(Budget(rank=4), row, 4, str))) == int(not row.shrinks)
