"""The equation for a batch whose rows have slots of their own: factors as stacks, and an index that is never read here.

index: (rows,) or as many leading axes of x as it has, the slot of each row, -1 for a row that passes through untouched.
It stays on the device, so a captured or compiled graph serves any slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyvera.adapter.equation import Vectors, adapt_naive, add_delta, is_fused, kernels, mixed, without_autocast
from polyvera.adapter.method import Scale

# Up to so many, one launch that reads B again for each block of tokens is faster than three that read it once.
FEW_TOKENS = 256
# Numbers of rows' own matrices that are gathered at a time, 256 MiB in fp32.
MOST_GATHERED = 2**26


def picked(stack: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """stack[index] with axes added so that it broadcasts over the tokens of `like`; index -1 takes the first."""
    rows = stack.index_select(0, index.clamp(min=0).flatten())
    return rows.view(*index.shape, *(1,) * (like.dim() - 1 - index.dim()), *stack.shape[1:])


def is_own(index: Tensor, like: Tensor) -> Tensor:
    """Whether each row has a slot, broadcasting over `like`."""
    return (index >= 0).view(*index.shape, *(1,) * (like.dim() - index.dim()))


def adapt_rows(y: Tensor, u: Tensor, v: Vectors, index: Tensor, bias: Tensor | None = None) -> Tensor:
    """The output of each row by its own slot.

    v: B (out, rank), and stacks d (slots, rank), C (slots, rank, rank), b, m, norm (slots, out).
    """
    u, v = _mixed_rows(u, v, index, y)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (y, u, v.d, v.b, v.m))
    if v.B.requires_grad or not is_fused(y, u, v.B):
        return adapt_rows_naive(y, u, v, index, bias)
    if not trains:
        return _fused_forward(y, u, v, index, bias)
    if v.m is None and v.b is not None and v.d is not None:
        out: Tensor = _AdaptRows.apply(y, u, v.B, v.d, v.b, v.scale, index)  # type: ignore[no-untyped-call]
        return out
    return adapt_rows_naive(y, u, v, index, bias)


def adapt_rows_naive(y: Tensor, u: Tensor, v: Vectors, index: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in plain operations, which compilers fuse: the reference of the kernels."""
    u, v = _mixed_rows(u, v, index, y)
    d, b, m, norm = (_own(t, index, y) for t in (v.d, v.b, v.m, v.norm))
    return torch.where(is_own(index, y), adapt_naive(y, u, Vectors(v.B, d, b, v.scale, m, norm), bias), y)


def _mixed_rows(u: Tensor, v: Vectors, index: Tensor, y: Tensor) -> tuple[Tensor, Vectors]:
    """u with each row's own core applied, and the stacks that are left."""
    if v.C is None:
        return u, v
    u, _ = mixed(u, Vectors(v.B, _own(v.d, index, y), C=_own(v.C, index, y)))
    return u, Vectors(v.B, None, v.b, v.scale, v.m, v.norm)


def _own(stack: Tensor | None, index: Tensor, like: Tensor) -> Tensor | None:
    """Each row's own of a stack; of a single slot there is nothing to gather, and its gradients are plain sums."""
    return None if stack is None else stack[0] if len(stack) == 1 else picked(stack, index, like)


def adapt_rows_by_factors(
    x: Tensor, y: Tensor, A: Tensor, v: Vectors, index: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The output where A (slots, rank, in) or B (slots, out, rank) or both are the slot's own, else matrices.

    Each row's own factors are gathered, for at most MOST_GATHERED numbers at a time, and multiply all its tokens: two
    batched products.
    """
    rows = index.clamp(min=0).flatten()
    flat_x, flat_y = x.reshape(len(rows), -1, x.shape[-1]), y.reshape(len(rows), -1, y.shape[-1])
    num = max(1, MOST_GATHERED // sum((t[0].numel() for t in (A, v.B) if t.dim() == 3), 1))
    if len(rows) <= num:
        out = _by_factors(flat_x, flat_y, A, v, rows, bias)
    else:
        parts = zip(*(torch.split(t, num) for t in (flat_x, flat_y, rows)), strict=True)
        out = torch.cat([_by_factors(some_x, some_y, A, v, some, bias) for some_x, some_y, some in parts])
    return torch.where(is_own(index, y), out.view_as(y), y)


def _by_factors(
    flat_x: Tensor, flat_y: Tensor, A: Tensor, v: Vectors, rows: Tensor, bias: Tensor | None = None
) -> Tensor:
    u = flat_x.to(A.dtype) @ _each(A, rows).mT
    w = (u if v.d is None else u * v.d[rows][:, None]) @ _each(v.B, rows).mT
    m, norm = (None if t is None else t[rows][:, None] for t in (v.m, v.norm))
    return add_delta(flat_y, w, Vectors(v.B, None, None, v.scale, m, norm), bias)


def _each(factor: Tensor, rows: Tensor) -> Tensor:
    return factor if factor.dim() == 2 else factor.index_select(0, rows)


def _fused_forward(y: Tensor, u: Tensor, v: Vectors, index: Tensor, bias: Tensor | None) -> Tensor:
    flat, rows, factor = u.reshape(-1, u.shape[-1]), index.flatten(), v.scale[0] / v.scale[1]
    flat_y = y.reshape(-1, y.shape[-1]).contiguous()
    out: Tensor
    if v.m is None and len(flat) <= FEW_TOKENS:
        out = kernels().expand_rows(flat_y, flat, v.B, v.d, v.b, rows, factor)
        return out.view_as(y)
    z = flat if v.d is None else kernels().scale_rows(flat, v.d, rows, u.dtype)
    with without_autocast(u):
        w = z @ v.B.t()
    out = kernels().add_rows(flat_y, w, v.b, v.m, v.norm, bias, rows, factor)
    return out.view_as(y)


class _AdaptRows(torch.autograd.Function):
    """adapt_rows_naive for frozen B and no gain: keeps u alone, and gathers and sums inside the kernels.

    w is computed once more for ∂b[slot] = Σ w ⊙ g: by gᵀ u, as for one adapter, it would take an (out, rank) matrix a
    row, which is more than w wherever a row is shorter than the rank is wide.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, u: Tensor, B: Tensor, d: Tensor, b: Tensor, scale: Scale, index: Tensor) -> Tensor:
        ctx.factor = scale[0] / scale[1]
        ctx.save_for_backward(u, B, d, b, index)
        return _fused_forward(y, u, Vectors(B, d, b, (ctx.factor, 1.0)), index, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, B, d, b, index = ctx.saved_tensors
        g, flat, rows = grads[0].reshape(-1, B.shape[0]).contiguous(), u.reshape(-1, u.shape[-1]), index.flatten()
        with without_autocast(u):
            w = kernels().scale_rows(flat, d, rows, u.dtype) @ B.t()
            left, db = kernels().scale_and_sum(g, w, b, rows, ctx.factor, u.dtype)
            du, dd = kernels().scale_and_sum(left @ B, flat, d, rows, 1.0, u.dtype)
        return grads[0], du.view_as(u), None, dd, db, None, None
