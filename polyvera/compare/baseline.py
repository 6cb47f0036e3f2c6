"""BASELINES: what stands beside the methods of the table in a comparison, as rows of a table of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.method import METHODS
from polyvera.compare.rival import Rival, banked_bytes, piece_length
from polyvera.train.recipe import FULL_LR, HEAD_LR, SMALLEST

FULL, HEAD = "full", "head"
SMALLEST_RANK = 1


@dataclass(frozen=True)
class Baseline:
    """A baseline. choices: keys of a Recipe. rate: the key of the rate that is swept, lr: its usual value.

    has_adapter: whether the numbers beside the head are its own. rival: what PEFT puts into the base, whose parameters
    are then all that trains.
    """

    choices: Mapping[str, Any]
    rate: str
    lr: float
    has_adapter: bool = True
    rival: Rival | None = None


# A head alone (a linear probe) is an adapter whose own numbers never move.
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
BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        FULL: Baseline({"full": True}, "lr", FULL_LR),
        HEAD: Baseline(STILL, "head_lr", HEAD_LR, has_adapter=False),
        **{name: Baseline({"full": True}, "lr", lr, rival=rival) for name, (lr, rival) in RIVALS.items()},
    }
)
