"""StepBudget: how much a step computes while several tenants are here. fair_shares: how they divide it."""

from __future__ import annotations

from collections.abc import Mapping

TARGET_S = 0.1  # of a step that several tenants share; a new request waits for one, and for its own
SLOWER = 2.0  # or so many times what the smallest step takes, where that is more
SHRINK, GROW = 0.25, 1.05  # by which one step changes the budget: at most, and where there was time left
FADE = 0.98  # of what earlier steps took: what they are made of changes
SPREAD = 0.01  # of the squared sizes: less says nothing of the smallest step


class StepBudget:
    """Follows the time of the steps, of whatever their time is made: rows, prompts, long contexts, samplers, copies.

    most: a step computes so many rows that decode and tokens of prompts, and starts so many rows of a tenant.
    whole: the most that a step can have.
    """

    def __init__(self, whole: int) -> None:
        self._whole, self._most = float(whole), float(whole)
        self._sums = [0.0] * 5  # of 1, sizes, seconds, sizes squared, sizes times seconds

    @property
    def most(self) -> int:
        """At least one."""
        return int(self._most)

    def took(self, seconds: float, size: int) -> None:
        """A step of so many rows and tokens, which several tenants shared, took so long."""
        new = (1.0, size, seconds, size * size, size * seconds)
        self._sums = [FADE * old + one for old, one in zip(self._sums, new, strict=True)]
        target = max(TARGET_S, SLOWER * self._smallest_s())
        factor = max(target / seconds, SHRINK) if seconds > target else GROW
        self._most = min(max(self._most * factor, 1.0), self._whole)

    def _smallest_s(self) -> float:
        """What a step takes that computes nothing, by a line through the latest; 0 where they are all of one size."""
        num, sizes, seconds, squares, products = self._sums
        spread = num * squares - sizes * sizes
        if spread <= SPREAD * num * squares:
            return 0.0
        slope = max((num * products - sizes * seconds) / spread, 0.0)
        return max((seconds - slope * sizes) / num, 0.0)


def fair_shares(needs: Mapping[str, int], weights: Mapping[str, float], num: int) -> dict[str, int]:
    """How many of `num` things each tenant gets: by weight, and what one does not need is the others'.

    Each gets at least one, while there are any.
    """
    shares: dict[str, int] = {}
    left, weight = num, sum(weights[tenant] for tenant in needs)
    for tenant in sorted(needs, key=lambda tenant: needs[tenant] / weights[tenant]):
        fair = left if len(shares) == len(needs) - 1 else int(left * weights[tenant] / weight)
        shares[tenant] = min(needs[tenant], max(fair, min(left, 1)))
        left, weight = left - shares[tenant], weight - weights[tenant]
    return shares
