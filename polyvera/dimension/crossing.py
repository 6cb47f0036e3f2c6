"""crossing: the size at which a curve of scores reaches a line, and how sure that is.

Scores of growing sizes are made monotone (isotonic regression by pooling adjacent violators, Ayer 1955) and
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
        return Crossing(size)
    draw, own = np.random.RandomState(RANDOM), _residuals({0: reference})
    counts = [len(scores[int(size)]) for size in sizes]
    found = []
    for _ in range(DRAWS):
        moved = means + [draw.choice(residuals, num).mean() if num > 1 else 0.0 for num in counts]
        line = np.mean(reference) + (draw.choice(own, len(reference)).mean() if len(own) else 0.0)
        found.append(reaches(sizes, moved, share * float(line)))
    low, high = np.percentile(found, INTERVAL, method="nearest")
    return Crossing(size, float(low), float(high))


def reaches(sizes: np.ndarray, scores: np.ndarray, line: float) -> float:
    """The size at which the monotone curve reaches the line; the first one where that is on it, inf where none does."""
    curve = monotone(scores)
    above = int(np.argmax(curve >= line)) if curve[-1] >= line else None
    if above is None:
        return inf
    if above == 0:
        return float(sizes[0])
    below = above - 1
    part = (line - curve[below]) / (curve[above] - curve[below])
    first, last = np.log1p(sizes[below]), np.log1p(sizes[above])
    return float(np.expm1(first + part * (last - first)))


def monotone(scores: np.ndarray) -> np.ndarray:
    """The nearest scores, by squares, that never fall."""
    blocks: list[tuple[float, int]] = []
    for score in scores:
        mean, num = float(score), 1
        while blocks and blocks[-1][0] >= mean:
            other, more = blocks.pop()
            mean, num = (mean * num + other * more) / (num + more), num + more
        blocks.append((mean, num))
    return np.concatenate([np.full(num, mean) for mean, num in blocks])


def _residuals(scores: Scores) -> np.ndarray:
    """What the scores of several seeds differ from their mean, widened; none of a size with one seed."""
    parts = [np.asarray(own, float) for own in scores.values() if len(own) > 1]
    return np.concatenate([[]] + [(own - own.mean()) * np.sqrt(len(own) / (len(own) - 1)) for own in parts])
