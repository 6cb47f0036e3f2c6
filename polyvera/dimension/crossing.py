"""crossing: the size at which a curve of scores reaches a line, and how sure that is.

Scores of growing sizes are made monotone (isotonic regression by its min-max formula, Barlow 1972) and
interpolated in log(1 + size). The interval is a bootstrap over seeds (Efron 1979) of residuals, which all sizes of a
family share, widened by √(n / (n - 1)) for the mean that was taken out of n seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

Scores = Mapping[int, Sequence[float]]

DRAWS, RANDOM = 2000, 0
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a line, in numbers; inf where it does not at any size that was tried, 0 without any.

    low, high: the ends of the 95 % interval, None for one seed.
    """

    size: float
    low: float | None = None
    high: float | None = None


def crossing(scores: Scores, reference: Sequence[float], share: float) -> Crossing:
    """Where the mean of the scores reaches share times the mean of the reference.

    scores: of each seed by size, 0 among them. reference: the score of each seed that the line is a share of.
    """
    sizes = np.array(sorted(scores), float)
    means = np.array([np.mean(scores[int(size)]) for size in sizes])
    size = reaches(sizes, means, share * float(np.mean(reference)))
    residuals = _residuals(scores)
    if not len(residuals):
        return Crossing(float(size))
    draw, own = np.random.RandomState(RANDOM), _residuals({0: reference})
    moved = means + np.stack([_means(draw, residuals, len(scores[int(size)])) for size in sizes], axis=1)
    lines = share * (float(np.mean(reference)) + _means(draw, own, len(reference)))
    low, high = np.percentile(reaches(sizes, moved, lines), INTERVAL, method="nearest")
    return Crossing(float(size), float(low), float(high))


def _means(draw: np.random.RandomState, residuals: np.ndarray, num: int) -> np.ndarray:
    """(DRAWS,) of the mean of so many residuals; 0 for one, and where there is none."""
    return draw.choice(residuals, (DRAWS, num)).mean(1) if num > 1 and len(residuals) else np.zeros(DRAWS)


def reaches(sizes: np.ndarray, scores: np.ndarray, line: float | np.ndarray) -> np.ndarray:
    """(...): the size at which each monotone curve reaches its line: the first one on or above it, inf where none is.

    sizes: (n,). scores: (..., n). line: of each curve.
    """
    curve, line = monotone(scores), np.asarray(line)[..., None]
    above = np.argmax(curve >= line, -1)[..., None]
    below = np.maximum(above - 1, 0)
    low, high = (np.take_along_axis(curve, at, -1) for at in (below, above))
    part = np.where(above > 0, (line - low) / np.where(high > low, high - low, 1), 1.0)
    logs = np.log1p(sizes)
    found = np.expm1(logs[below] + part * (logs[above] - logs[below]))
    return np.where(curve[..., -1:] >= line, found, inf)[..., 0]


def monotone(scores: np.ndarray) -> np.ndarray:
    """(..., n): the nearest scores, by squares, that never fall.

    At k the largest over i <= k of the least mean of scores i ... j over j >= k. scores: (..., n), for a small n.
    """
    num = scores.shape[-1]
    sums = np.concatenate([np.zeros_like(scores[..., :1]), np.cumsum(scores, -1)], -1)
    means = [[(sums[..., j + 1] - sums[..., i]) / (j + 1 - i) for j in range(i, num)] for i in range(num)]
    least = [[np.minimum.reduce(own[k - i :]) for k in range(i, num)] for i, own in enumerate(means)]
    return np.stack([np.maximum.reduce([least[i][k - i] for i in range(k + 1)]) for k in range(num)], -1)


def _residuals(scores: Scores) -> np.ndarray:
    """What the scores of several seeds differ from their mean, widened; none of a size with one seed."""
    parts = [np.asarray(own, float) for own in scores.values() if len(own) > 1]
    return np.concatenate([[]] + [(own - own.mean()) * np.sqrt(len(own) / (len(own) - 1)) for own in parts])
