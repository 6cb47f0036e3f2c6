"""What goes on after a rung: the best and some below it; a tie goes to the rate that was expected."""

from math import inf, nan

import pytest

from polyvera.train.fleet.halving import POWER, RUNGS, Rung, best_rate, going_on, moved, whole_run_rate

RATES = [2.0**k for k in range(8)]


def test_the_lowest_mean_loss_is_the_best() -> None:
    losses = {0.1: [0.9, 0.8, 0.9], 0.2: [0.5, 0.4, 0.5], 0.4: [0.8, 0.7, 0.9]}
    assert best_rate(losses, expected=0.1) == 0.2


def test_what_cannot_be_distinguished_goes_to_the_expected_rate() -> None:
    losses = {0.1: [0.6, 0.4, 0.5, 0.5], 0.2: [0.5, 0.45, 0.5, 0.5], 0.4: [0.9, 0.9, 0.9, 0.9]}
    assert best_rate(losses, expected=0.1) == 0.1
    assert best_rate(losses, expected=0.3) == 0.2
    assert best_rate({lr: own[:3] for lr, own in losses.items()}, expected=0.1) == 0.2  # too few to say


def test_a_small_difference_that_every_row_has_is_one() -> None:
    losses = {0.1: [9.1, 5.1, 1.1, 7.1], 0.2: [9.0, 5.0, 1.0, 7.0]}
    assert best_rate(losses, expected=0.1) == 0.2


def test_a_loss_that_is_no_number_is_no_choice() -> None:
    assert best_rate({0.1: [5.0, 5.0], 0.2: [inf, 0.1], 0.4: [nan, 0.1]}, expected=0.4) == 0.1
    assert best_rate({0.2: [inf], 0.1: [nan]}, expected=0.4) == 0.1


@pytest.mark.parametrize(
    ("best", "expected"),
    [(8.0, {2.0, 4.0, 8.0, 16.0}), (128.0, {32.0, 64.0, 128.0}), (1.0, {1.0, 2.0})],
)
def test_the_best_goes_on_with_those_below_it(best: float, expected: set[float]) -> None:
    assert going_on(RATES, best, Rung(0.1, 1, 2)) == expected


def test_one_rate_is_left_at_the_end() -> None:
    assert going_on(RATES, 8.0, RUNGS[-1]) == {8.0}
    assert [rung.share for rung in RUNGS] == sorted(rung.share for rung in RUNGS)


def test_the_best_rate_falls_with_a_power_of_what_it_moves() -> None:
    assert whole_run_rate(0.24, 0.25) == pytest.approx(0.24 * 0.25**POWER, rel=5e-3)
    assert 0.12 < whole_run_rate(0.24, 0.25) < 0.24
    assert whole_run_rate(0.24, 1.0) == 0.24


def test_a_schedule_that_falls_moves_more_at_first() -> None:
    assert moved(lambda step: 1.0, 5, 20) == 0.25
    assert moved(lambda step: 1 - step / 20, 5, 20) == pytest.approx(90 / 210)
    assert moved(lambda step: 1 - step / 20, 20, 20) == 1.0
