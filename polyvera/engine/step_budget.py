"""StepBudget: how much a step computes while several tenants are here. fair_shares: how they divide it."""

from __future__ import annotations

from collections.abc import Mapping

TARGET_S = 0.1  # of a step that several tenants share; a new request waits for one, and for its own
SLOWER = 2.0  # or so many times the fastest step, where the machine has none of TARGET_S
SHRINK, GROW = 0.25, 1.05  # by which one step changes it: at most, and where there was time left
FADE = 1.001  # the fastest step is forgotten slowly: the model's time may change with its adapters


class StepBudget:
    """Follows the time of the steps, of whatever their time is made: rows, prompts, long contexts, samplers, copies.

    most: a step computes so many rows that decode and tokens of prompts, and starts so many rows of a tenant.
    whole: the most that a step can have.
    """

    def __init__(self, whole: int) -> None:
        self._whole, self._most, self._fastest_s = float(whole), float(whole), float("inf")

    @property
    def most(self) -> int:
        """At least one."""
        return int(self._most)

    def took(self, seconds: float) -> None:
        """A step that several tenants share took so long."""
        self._fastest_s = min(self._fastest_s * FADE, seconds)
        target = max(TARGET_S, SLOWER * self._fastest_s)
        factor = max(target / seconds, SHRINK) if seconds > target else GROW
        self._most = min(max(self._most * factor, 1.0), self._whole)


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
