"""BASELINES: what stands beside the methods of the table in a comparison, as rows of a table of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.method import METHODS
from polyvera.train.recipe import FULL_LR, HEAD_LR, SMALLEST

FULL, HEAD = "full", "head"
SMALLEST_RANK = 1


@dataclass(frozen=True)
class Baseline:
    """A baseline. choices: keys of a Recipe. rate: the key of the rate that is swept, lr: its usual value.

    has_adapter: whether the numbers beside the head are its own.
    """

    choices: Mapping[str, Any]
    rate: str
    lr: float
    has_adapter: bool = True


# A head alone (a linear probe) is an adapter whose own numbers never move.
STILL = {"method": next(iter(METHODS)), "rank": SMALLEST_RANK, "lr": SMALLEST}
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        FULL: Baseline({"full": True}, "lr", FULL_LR),
        HEAD: Baseline(STILL, "head_lr", HEAD_LR, has_adapter=False),
    }
)
