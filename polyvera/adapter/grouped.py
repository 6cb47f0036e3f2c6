"""grouped_linear: each row times a matrix of its own out of a stack, rows of one matrix together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped_linear(x: Tensor, stack: Tensor, index: Tensor) -> Tensor:
    """x (rows, in), stack (matrices, out, in), index (rows,) of each row's matrix, -1 for none -> (rows, out).

    A row without a matrix gives 0. One product for each matrix that has rows, whose number is read on the host.
    """
    order = index.argsort(stable=True)
    which, counts = torch.unique_consecutive(index[order], return_counts=True)
    # Taken apart once, so that the backward pass puts the gradients of a stack together once.
    matrices: Sequence[Tensor] | Tensor = stack.unbind(0) if stack.requires_grad else stack
    parts = zip(which.tolist(), torch.split(x[order], counts.tolist()), strict=True)
    found = [F.linear(part, matrices[i]) if i >= 0 else part.new_zeros(len(part), stack.shape[1]) for i, part in parts]
    return torch.cat(found)[order.argsort()] if found else x.new_zeros(0, stack.shape[1])


def grouped_linear_naive(x: Tensor, stack: Tensor, index: Tensor) -> Tensor:
    """The same with a copy of its matrix for each row and nothing read on the host, so that a graph can hold it."""
    found = torch.bmm(stack[index.clamp(min=0)].to(x.dtype), x[:, :, None])[:, :, 0]
    return torch.where(index[:, None] >= 0, found, 0.0)
