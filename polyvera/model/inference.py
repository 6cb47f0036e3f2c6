"""How a model is run without training it: its mode, and rows in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the mode is as before afterwards."""
    import torch

    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of like length, the longest first."""
    rows = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def until_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """An answer's tokens without its end token and the padding behind it."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])
