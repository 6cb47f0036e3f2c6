"""check_numbers, check_loss: whether what was trained can be kept and served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from polyvera.errors import DivergedError

# A base and its banks may be in float16, where whatever is larger is infinite. Trained numbers start within about 1 of
# 0, and AdamW moves each by about lr at a step: none that has learnt anything comes near.
LARGEST = torch.finfo(torch.float16).max
NUM_COMPARED = 16  # training rows, where the losses of the steps make it worth a look
RECENT = 10
UNTRAINED = 1.0  # of a head that says the mean of numbers in their deviation, and more than that of two classes


def check_numbers(tensors: Iterable[Tensor], lr: float | None = None) -> None:
    """Looks at all numbers of an adapter, as the loss takes them, before it is published.

    lr: what they were trained at, in the words of the error; None where the one who trains knows it alone. Raises
    DivergedError for a number that is not finite, or larger than float16 can hold.
    """
    for tensor in tensors:
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if not largest <= LARGEST:  # NaN is not, either
            again = "at a lower learning rate" if lr is None else f"at a lower lr than {lr:g}"
            raise DivergedError(
                f"training made numbers as large as {largest:.3g}, and a model in float16 can hold {LARGEST:g} at "
                f"most: nothing is published; train again {again}"
            )


def check_loss(losses: Sequence[float], own: Callable[[], float], bare: Callable[[], float] | None, lr: float) -> None:
    """Looks at what an adapter has learnt, before it is published.

    losses: of each step. own, bare: the mean loss of the same training rows with it and without, which is asked for
    where the steps' losses leave it open; bare is None where the base has no answers of its own. Raises DivergedError
    where the adapter is far worse than nothing.
    """
    if is_open(losses):
        check_rows(own(), max(losses[0], UNTRAINED) if bare is None else bare(), lr)


def is_open(losses: Sequence[float]) -> bool:
    """Whether the losses of the steps leave open that an adapter is far worse than nothing: they rose, or are one."""
    return len(losses) == 1 or not max(losses[-1], fmean(losses[-RECENT:])) <= _most(losses[0])


def check_rows(own: float, bare: float, lr: float) -> None:
    """Raises DivergedError where the mean loss of training rows with an adapter is far above that without it."""
    if not own <= _most(bare):
        raise DivergedError(
            f"the loss of the training rows is {own:.4g}, and {bare:.4g} without what was trained: nothing is "
            f"published; train again at a lower lr than {lr:g}"
        )


def _most(loss: float) -> float:
    """What noise or forgetting does not come to: twice a loss, and a nat more at least."""
    return loss + max(1.0, loss)
