"""A bracket goes on beyond an edge until the loss turns; one factor is not tried."""

from math import inf

import pytest

from polyvera.compare.bracket import beyond, bracketed


def test_a_sweep_goes_on_beyond_an_edge_until_the_loss_turns() -> None:
    assert list(bracketed([1.0, 3.0], 5, lambda factor: abs(factor - 27))) == [1, 3, 9, 27, 81]
    assert list(bracketed([3.0, 1.0], 5, lambda factor: factor)) == pytest.approx(
        [1, 3, *(3.0**-k for k in range(1, 6))]
    )
    assert list(bracketed([1.0, 3.0], 5, lambda factor: abs(factor - 9))) == [1, 3, 9, 27]


def test_a_loss_that_is_no_number_is_no_edge() -> None:
    assert beyond({1: 5.0, 2: 1.0, 4: inf}) is None
    assert beyond({1: inf, 2: inf}) is None
    assert bracketed([1.0, 2.0], 3, lambda factor: float("nan")) == {1.0: inf, 2.0: inf}


def test_one_factor_is_not_tried() -> None:
    def never(factor: float) -> float:
        raise AssertionError(factor)

    assert list(bracketed([2.0], 3, never)) == [2.0]
