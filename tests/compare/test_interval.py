"""The interval of a paired difference: what Student's t gives, and nothing from one seed."""

import pytest

from polyvera.compare.interval import QUANTILES, interval


def test_the_interval_is_students() -> None:
    mean, half = interval([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / 3**0.5)


def test_equal_differences_leave_no_doubt() -> None:
    assert interval([1.0, 2.0], [0.0, 1.0]) == (1.0, 0.0)


def test_one_seed_says_nothing_and_unequal_ones_are_refused() -> None:
    assert interval([1.0], [0.0]) is None
    with pytest.raises(ValueError):
        interval([1.0, 2.0], [0.0])


@pytest.mark.parametrize("num", [len(QUANTILES) + 1, 40])
def test_many_seeds_have_a_quantile(num: int) -> None:
    _, half = interval([float(i % 2) for i in range(num)], [0.0] * num)
    assert 0 < half < 0.5
