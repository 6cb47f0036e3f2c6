"""check_numbers: whether what was trained can be kept and served."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from polyvera.errors import DivergedError

# A base and its banks may be in float16, where whatever is larger is infinite. Trained numbers start within about 1 of
# 0, and AdamW moves each by about lr at a step: none that has learnt anything comes near.
LARGEST = torch.finfo(torch.float16).max


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
