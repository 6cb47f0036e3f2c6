"""How many optimizer steps a run makes, and the learning rate of each, for solo runs and for the members of a fleet."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from math import ceil, cos, pi
from types import MappingProxyType

import numpy as np

from polyvera.train.recipe import EPOCHS, Recipe

# The factor of the learning rate by the share of the steps after warm-up that are done, 0 to 1.
DECAYS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda done: 1 - done,
        "cosine": lambda done: 0.5 * (1 + cos(pi * done)),
        "constant": lambda done: 1.0,
    }
)


def num_steps(recipe: Recipe, num_rows: int, world_size: int) -> tuple[int, int]:
    """(optimizer steps in an epoch, in all) for so many rows on world_size processes."""
    epoch = ceil(ceil(num_rows / (recipe.batch_size * world_size)) / recipe.accumulate)
    return epoch, recipe.max_steps or ceil((recipe.epochs or EPOCHS) * epoch)


def lr_factor(recipe: Recipe, total: int) -> Callable[[int], float]:
    """What multiplies the learning rate at a step (from 0) of `total`: linear up in warm-up, then the schedule.

    Never 0, so that every step trains: what transformers' schedulers give without their first step, which is at 0.
    """
    warmup, decay = ceil(recipe.warmup * total), DECAYS[recipe.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, decay(min(1.0, (step - warmup) / max(1, total - warmup))))

    return factor


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, those of every GPU too."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
