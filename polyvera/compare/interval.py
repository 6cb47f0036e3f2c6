"""interval: how much two methods differ over the same seeds, with the 95 % interval of Student's t (1908)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

# The 0.975 quantile of Student's t by its degrees of freedom, from 1; beyond the last, that of many.
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
QUANTILE_OF_MANY = 2.14


def interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """(mean, half width) of one - other, seed by seed; None for fewer than two seeds.

    one, other: a score of each seed, in the same order. Raises ValueError for different numbers of them.
    """
    differences = [x - y for x, y in zip(one, other, strict=True)]
    if len(differences) < 2:
        return None
    freedom = len(differences) - 1
    quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else QUANTILE_OF_MANY
    return fmean(differences), quantile * stdev(differences) / len(differences) ** 0.5
