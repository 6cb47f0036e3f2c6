"""bracket: the losses at some factors of a rate, and beyond the best where that is an edge, until the loss turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite


def bracketed(factors: Sequence[float], extensions: int, loss_of: Callable[[float], float]) -> dict[float, float]:
    """The validation loss at each factor that is tried: the given ones, then at most so many more beyond a best edge.

    loss_of: trains with a factor; it is not called where there is only one. A loss that is no number is infinite.
    """
    if len(factors) == 1:
        return {factors[0]: 0.0}

    def loss(factor: float) -> float:
        found = loss_of(factor)
        return found if isfinite(found) else inf

    losses = {factor: loss(factor) for factor in sorted(factors)}
    for _ in range(extensions):
        further = beyond(losses)
        if further is None:
            break
        losses[further] = loss(further)
    return losses


def beyond(losses: Mapping[float, float]) -> float | None:
    """The next factor where the best is the lowest or the highest, as far from it as its neighbour; else None."""
    low, *_, high = factors = sorted(losses)
    best = min(factors, key=lambda factor: losses[factor])
    ratios = {low: low / factors[1], high: high / factors[-2]}
    return best * ratios[best] if best in ratios and isfinite(losses[best]) else None
