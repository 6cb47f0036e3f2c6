"""BASELINES: what stands beside the methods of the table in a comparison, as rows of a table of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.method import METHODS
from polyvera.train.recipe import FULL_LR, HEAD_LR, SMALLEST
from polyvera.train.warm_start import MEAN

FULL, HEAD, BASE, MEAN_ONLY = "full", "head", "base", "mean"
PARTS = ("adapter", "head")
SMALLEST_RANK = 1


@dataclass(frozen=True)
class Baseline:
    """A baseline. choices: keys of a Recipe. rate: the key of the rate that is swept, lr: its usual value.

    trains: which numbers are a run's own; where there are none, no rate is swept either.
    """

    choices: Mapping[str, Any]
    rate: str
    lr: float
    trains: tuple[str, ...] = PARTS

    @property
    def is_swept(self) -> bool:
        """Whether there is a rate to choose."""
        return bool(self.trains)


# An adapter whose own numbers never move; beside it a head alone is a linear probe.
STILL = {"method": next(iter(METHODS)), "rank": SMALLEST_RANK, "lr": SMALLEST}
# One step that moves nothing: a clipped gradient is far below AdamW's ε.
UNTRAINED = {"lr": SMALLEST, "clip": SMALLEST, "weight_decay": 0.0, "max_steps": 1, "epochs": None}
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        FULL: Baseline({"full": True}, "lr", FULL_LR),
        HEAD: Baseline(STILL, "head_lr", HEAD_LR, ("head",)),
        BASE: Baseline({**STILL, **UNTRAINED, "init_from": None}, "lr", SMALLEST, ()),
        MEAN_ONLY: Baseline({**UNTRAINED, "init_from": MEAN}, "lr", SMALLEST, ()),
    }
)
