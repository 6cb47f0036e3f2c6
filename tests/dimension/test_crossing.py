"""The crossing of known curves, the monotone fit, and an interval that holds what it should."""

from math import exp, inf, log

import numpy as np
import pytest

from polyvera.dimension.crossing import crossing, monotone, reaches

SIZES = np.array([0.0, 10.0, 100.0])


def test_a_curve_is_interpolated_by_the_logarithm_of_the_size() -> None:
    middle = reaches(SIZES, np.array([0.0, 0.5, 0.9]), 0.7)
    assert middle == pytest.approx(exp((log(11) + log(101)) / 2) - 1)


@pytest.mark.parametrize(("line", "size"), [(0.2, 0.0), (0.9, 100.0), (0.91, inf)])
def test_a_line_below_the_curve_on_it_and_beyond_it(line: float, size: float) -> None:
    assert reaches(SIZES, np.array([0.2, 0.5, 0.9]), line) == pytest.approx(size)


def test_a_dip_is_pooled_with_its_neighbour() -> None:
    assert list(monotone(np.array([1.0, 3.0, 2.0, 4.0, 4.0]))) == [1.0, 2.5, 2.5, 4.0, 4.0]
    assert list(monotone(np.array([3.0, 2.0, 1.0]))) == [2.0, 2.0, 2.0]


def pooled(scores: np.ndarray) -> np.ndarray:
    """The naive twin: neighbours that fall are pooled until none does."""
    blocks: list[list[float]] = []
    for score in scores:
        blocks.append([float(score)])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])


def test_many_curves_at_once_are_each_pooled() -> None:
    curves = np.random.RandomState(0).randn(50, 7)
    assert np.allclose(monotone(curves), [pooled(curve) for curve in curves])
    sizes, lines = np.arange(7) ** 3, np.linspace(-1, 1, 50)
    alone = [reaches(sizes, curve, line) for curve, line in zip(curves, lines, strict=True)]
    assert np.allclose(reaches(sizes, curves, lines), alone)


def test_one_seed_has_no_interval_and_equal_seeds_have_a_point() -> None:
    curve = {0: (0.0,), 10: (0.5,), 100: (1.0,)}
    assert crossing(curve, (1.0,), 0.9).low is None
    same = crossing({size: own * 3 for size, own in curve.items()}, (1.0,) * 3, 0.9)
    assert same.low == same.high == pytest.approx(same.size)


def test_the_interval_holds_the_true_size_as_often_as_it_says() -> None:
    sizes, noise, truth = (0, 16, 64, 256, 1024, 4096), 0.02, 0.9
    means = {size: 1 - 1 / (1 + size / 64) for size in sizes}
    at = crossing({size: (mean,) for size, mean in means.items()}, (1.0,), truth).size
    draw, num, inside = np.random.RandomState(0), 60, 0
    for _ in range(num):
        scores = {size: tuple(mean + noise * draw.randn(4)) for size, mean in means.items()}
        found = crossing(scores, tuple(1 + noise * draw.randn(4)), truth)
        inside += found.low <= at <= found.high
    assert 0.85 * num <= inside <= num


def test_what_no_seed_reaches_has_no_end() -> None:
    found = crossing({0: (0.0, 0.1), 16: (0.2, 0.3)}, (1.0, 1.0), 0.9)
    assert (found.size, found.low, found.high) == (inf, inf, inf)
