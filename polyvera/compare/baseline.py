"""BASELINES: what stands beside the methods of the table in a comparison, as rows of a table of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.method import METHODS
from polyvera.compare.rival import Rival, banked_bytes, piece_length
from polyvera.train.recipe import FULL_LR, HEAD_LR, SMALLEST
from polyvera.train.warm_start import MEAN

FULL, HEAD, BASE, MEAN_ONLY = "full", "head", "base", "mean"
PARTS = ("adapter", "head")
SMALLEST_RANK = 1


@dataclass(frozen=True)
class Baseline:
    """A baseline. choices: keys of a Recipe. rate: the key of the rate that is swept, lr: its usual value.

    trains: which numbers are a run's own; where there are none, no rate is swept either. rival: what PEFT puts into the
    base, whose parameters are then all that trains.
    """

    choices: Mapping[str, Any]
    rate: str
    lr: float
    trains: tuple[str, ...] = PARTS
    rival: Rival | None = None

    @property
    def is_swept(self) -> bool:
        """Whether there is a rate to choose."""
        return bool(self.trains)


# An adapter whose own numbers never move; beside it a head alone is a linear probe.
STILL = {"method": next(iter(METHODS)), "rank": SMALLEST_RANK, "lr": SMALLEST}
# PEFT trains VB-LoRA's bank at a tenth of its logits' rate; here both have the one that is swept.
RIVALS: Mapping[str, tuple[float, Rival]] = MappingProxyType(
    {
        "peft-fourierft": (3e-1, Rival("FOURIERFT", lambda shapes: {"n_frequency": 256})),
        "peft-ia3": (1e-2, Rival("IA3", lambda shapes: {"feedforward_modules": []})),
        "peft-randlora": (3e-3, Rival("RANDLORA", lambda shapes: {"r": 32})),
        "peft-unilora": (1e-1, Rival("UNILORA", lambda shapes: {"r": 4, "theta_d_length": 1024})),
        "peft-vblora": (
            1e-2,
            Rival(
                "VBLORA",
                lambda shapes: {"r": 4, "num_vectors": 16, "topk": 2, "vector_length": piece_length(shapes)},
                banked_bytes,
            ),
        ),
    }
)
# One step that moves nothing: a clipped gradient is far below AdamW's ε.
UNTRAINED = {"lr": SMALLEST, "clip": SMALLEST, "weight_decay": 0.0, "max_steps": 1, "epochs": None}
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        FULL: Baseline({"full": True}, "lr", FULL_LR),
        HEAD: Baseline(STILL, "head_lr", HEAD_LR, ("head",)),
        BASE: Baseline({**STILL, **UNTRAINED, "init_from": None}, "lr", SMALLEST, ()),
        MEAN_ONLY: Baseline({**UNTRAINED, "init_from": MEAN}, "lr", SMALLEST, ()),
        **{name: Baseline({"full": True}, "lr", lr, rival=rival) for name, (lr, rival) in RIVALS.items()},
    }
)
