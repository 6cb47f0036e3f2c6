"""Triton kernels of the memory-bound parts of the equation; their plain twins are in equation.py.

Tokens are rows of matrices: u, z, h (tokens, rank), y, w, g (tokens, out). Token t has the slot index[t // span], span
being the number of tokens of one row of the batch; -1 is a row of another bank or of the base. index=None is slot 0
for all. Vectors are stacks with a leading slot axis, read where they lie. Sums are in fp32 and in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, TOKENS, SPLIT = 256, 16, 128
EXPAND_COLUMNS, EXPAND_TOKENS, EXPAND_RANKS = 32, 64, 64


@triton.jit
def _slot(index, t, span, HAS_INDEX: tl.constexpr, mask):
    slot = tl.zeros_like(t)
    if HAS_INDEX:
        slot = tl.load(index + t // span, mask=mask, other=-1).to(tl.int32)
    return slot


@triton.jit
def _tile(stack, slot, stride, c, inside):
    return tl.load(stack + slot[:, None].to(tl.int64) * stride + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _scale_kernel(
    x, stack, index, out, n, width, stride, span, scale, HAS_INDEX: tl.constexpr, T: tl.constexpr, C: tl.constexpr
):
    t, c = tl.program_id(0) * T + tl.arange(0, T), tl.program_id(1) * C + tl.arange(0, C)
    slot = _slot(index, t, span, HAS_INDEX, t < n)
    inside = (t < n)[:, None] & (c < width)[None, :]
    at = t[:, None].to(tl.int64) * width + c[None, :]
    own = inside & (slot >= 0)[:, None]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * _tile(stack, slot, stride, c, own) * scale
    tl.store(out + at, tl.where(own, value, 0.0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _epilogue_kernel(
    y, w, b, m, norm, bias, index, out, n, width, b_stride, m_stride, norm_stride, span, scale,
    HAS_INDEX: tl.constexpr, HAS_B: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_BIAS: tl.constexpr,
    T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t, c = tl.program_id(0) * T + tl.arange(0, T), tl.program_id(1) * C + tl.arange(0, C)
    slot = _slot(index, t, span, HAS_INDEX, t < n)
    inside = (t < n)[:, None] & (c < width)[None, :]
    at = t[:, None].to(tl.int64) * width + c[None, :]
    own = inside & (slot >= 0)[:, None]
    plain = tl.load(y + at, mask=inside, other=0.0)
    delta = tl.load(w + at, mask=own, other=0.0).to(tl.float32) * scale
    if HAS_B:
        delta = delta * _tile(b, slot, b_stride, c, own)
    value = plain.to(tl.float32)
    if HAS_GAIN:
        shift = tl.zeros_like(value)
        if HAS_BIAS:
            shift += tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
        gain = _tile(m, slot, m_stride, c, own) / _tile(norm, slot, norm_stride, c, own)
        value = gain * (value - shift + delta) + shift
    else:
        value = value + delta
    tl.store(out + at, tl.where(own, value.to(out.dtype.element_ty), plain.to(out.dtype.element_ty)), mask=inside)


@triton.jit
def _expand_kernel(
    y, u, B, d, b, index, out, n, width, B_stride, d_stride, b_stride, span, scale,
    HAS_INDEX: tl.constexpr, HAS_D: tl.constexpr, HAS_B: tl.constexpr, PRECISION: tl.constexpr,
    RANK: tl.constexpr, T: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    t, c = tl.program_id(1) * T + tl.arange(0, T), tl.program_id(0) * C + tl.arange(0, C)
    slot = _slot(index, t, span, HAS_INDEX, t < n)
    own = (t < n) & (slot >= 0)
    total = tl.zeros((T, C), dtype=tl.float32)
    for start in range(0, RANK, R):
        r = start + tl.arange(0, R)
        inside = own[:, None] & (r < RANK)[None, :]
        z = tl.load(u + t[:, None].to(tl.int64) * RANK + r[None, :], mask=inside, other=0.0)
        if HAS_D:
            z = (z.to(tl.float32) * _tile(d, slot, d_stride, r, inside)).to(z.dtype)
        there = (c < width)[None, :] & (r < RANK)[:, None]
        factor = tl.load(B + c[None, :].to(tl.int64) * B_stride + r[:, None], mask=there, other=0.0)
        total += tl.dot(z, factor, input_precision=PRECISION)
    inside = (t < n)[:, None] & (c < width)[None, :]
    at = t[:, None].to(tl.int64) * width + c[None, :]
    plain = tl.load(y + at, mask=inside, other=0.0)
    delta = total * scale
    if HAS_B:
        delta = delta * _tile(b, slot, b_stride, c, inside & own[:, None])
    value = (plain.to(tl.float32) + delta).to(out.dtype.element_ty)
    tl.store(out + at, tl.where(own[:, None], value, plain.to(out.dtype.element_ty)), mask=inside)


@triton.jit
def _scale_and_sum_kernel(
    x, other, stack, index, scaled, sums, width, stride, span, splits, scale,
    HAS_INDEX: tl.constexpr, T: tl.constexpr, L: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """scaled = stack[slot] x scale, and the sums of x * other * scale over blocks of L tokens of one row."""
    row, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    c = tl.program_id(1) * C + tl.arange(0, C)
    slot = tl.program_id(0) * 0
    if HAS_INDEX:
        slot = tl.load(index + row).to(tl.int32)
    v = tl.load(stack + slot.to(tl.int64) * stride + c, mask=(c < width) & (slot >= 0), other=0.0).to(tl.float32)
    total = tl.zeros((C,), dtype=tl.float32)
    for start in range(0, L, T):
        i = part * L + start + tl.arange(0, T)
        inside = (i < span)[:, None] & (c < width)[None, :]
        at = (row.to(tl.int64) * span + i[:, None]) * width + c[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
        total += tl.sum(value * tl.load(other + at, mask=inside, other=0.0).to(tl.float32), 0)
        kept = tl.where(slot >= 0, value * v[None, :], 0.0)
        tl.store(scaled + at, kept.to(scaled.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * width + c, total, mask=c < width)


@triton.jit
def _slot_sum_kernel(sums, index, out, count, splits, width, HAS_INDEX: tl.constexpr, C: tl.constexpr):
    slot, c = tl.program_id(0), tl.program_id(1) * C + tl.arange(0, C)
    total = tl.zeros((C,), dtype=tl.float32)
    i = tl.program_id(0) * 0
    while i < count:
        owner = slot
        if HAS_INDEX:
            owner = tl.load(index + i // splits).to(tl.int32)
        total += tl.load(sums + i.to(tl.int64) * width + c, mask=(c < width) & (owner == slot), other=0.0)
        i += 1
    tl.store(out + slot.to(tl.int64) * width + c, total, mask=c < width)


@triton.jit
def _basis_kernel(
    B,
    b,
    d,
    out,
    rows,
    rank,
    B_stride,
    scale,
    HAS_B: tl.constexpr,
    HAS_D: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    o, c = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * C + tl.arange(0, C)
    inside = (o < rows)[:, None] & (c < rank)[None, :]
    value = tl.load(B + o[:, None].to(tl.int64) * B_stride + c[None, :], mask=inside, other=0.0).to(tl.float32) * scale
    if HAS_B:
        value = value * tl.load(b + o, mask=o < rows, other=0.0).to(tl.float32)[:, None]
    if HAS_D:
        value = value * tl.load(d + c, mask=c < rank, other=0.0).to(tl.float32)[None, :]
    tl.store(out + o[:, None].to(tl.int64) * rank + c[None, :], value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _basis_sums_kernel(
    M, B, b, d, db, sums, rows, rank, B_stride, scale,
    HAS_B: tl.constexpr, HAS_D: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """db = row sums of scale M B d; the sums of scale M B b over blocks of R rows, whose sum is the gradient of d."""
    o = tl.program_id(0) * R + tl.arange(0, R)
    own = tl.full((R,), 1.0, dtype=tl.float32)
    if HAS_B:
        own = tl.load(b + o, mask=o < rows, other=0.0).to(tl.float32)
    total = tl.zeros((R,), dtype=tl.float32)
    start = tl.program_id(0) * 0
    while start < rank:
        c = start + tl.arange(0, C)
        inside = (o < rows)[:, None] & (c < rank)[None, :]
        product = (
            tl.load(M + o[:, None].to(tl.int64) * rank + c[None, :], mask=inside, other=0.0).to(tl.float32) * scale
        )
        product *= tl.load(B + o[:, None].to(tl.int64) * B_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.store(sums + tl.program_id(0) * rank + c, tl.sum(product * own[:, None], 0), mask=c < rank)
        if HAS_D:
            product *= tl.load(d + c, mask=c < rank, other=0.0).to(tl.float32)[None, :]
        total += tl.sum(product, 1)
        start += C
    tl.store(db + o, total, mask=o < rows)


def _spread(tokens: int, index: Tensor | None) -> int:
    """The tokens of one row."""
    return tokens if index is None else max(1, tokens // max(1, index.numel()))


def scale_rows(x: Tensor, stack: Tensor, index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """stack[slot] ⊙ x, (tokens, width) in `dtype`, 0 for rows of no slot. stack (slots, width)."""
    out = torch.empty(x.shape, device=x.device, dtype=dtype)
    n, width = x.shape
    if n:
        grid = (triton.cdiv(n, TOKENS), triton.cdiv(width, COLUMNS))
        _scale_kernel[grid](
            x, stack, index, out, n, width, stack.stride(0), _spread(n, index), 1.0, index is not None, TOKENS, COLUMNS
        )
    return out


def add_rows(
    y: Tensor,
    w: Tensor,
    b: Tensor | None,
    m: Tensor | None,
    norm: Tensor | None,
    bias: Tensor | None,
    index: Tensor | None,
    scale: float,
) -> Tensor:
    """y + scale b[slot] w, or m / norm (y - bias + scale b w) + bias of the slot; y itself for rows of no slot."""
    out = torch.empty_like(y)
    n, width = y.shape
    if n:
        grid = (triton.cdiv(n, TOKENS), triton.cdiv(width, COLUMNS))
        _epilogue_kernel[grid](
            y, w, b, m, norm, bias, index, out, n, width,
            *(0 if t is None else t.stride(0) for t in (b, m, norm)), _spread(n, index), scale,
            index is not None, b is not None, m is not None, bias is not None, TOKENS, COLUMNS,
        )  # fmt: skip
    return out


def expand_rows(
    y: Tensor, u: Tensor, B: Tensor, d: Tensor | None, b: Tensor | None, index: Tensor | None, scale: float
) -> Tensor:
    """y + scale b[slot] ⊙ B (d[slot] ⊙ u) in one launch, made for few tokens; y itself for rows of no slot."""
    out = torch.empty_like(y)
    n, width = y.shape
    if n:
        tokens = min(EXPAND_TOKENS, max(16, triton.next_power_of_2(n)))
        grid = (triton.cdiv(width, EXPAND_COLUMNS), triton.cdiv(n, tokens))
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
        _expand_kernel[grid](
            y, u, B, d, b, index, out, n, width, B.stride(0), *(0 if t is None else t.stride(0) for t in (d, b)),
            _spread(n, index), scale, index is not None, d is not None, b is not None, precision,
            u.shape[1], tokens, EXPAND_COLUMNS, EXPAND_RANKS, num_warps=4, num_stages=3,
        )  # fmt: skip
    return out


def scale_and_sum(
    x: Tensor, other: Tensor, stack: Tensor, index: Tensor | None, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """scale stack[slot] ⊙ x, (tokens, width) in `dtype`, and Σ scale x ⊙ other by slot, (slots, width) fp32."""
    n, width = x.shape
    scaled, span = torch.empty(x.shape, device=x.device, dtype=dtype), _spread(n, index)
    splits = triton.cdiv(span, SPLIT)
    rows = 1 if index is None else index.numel()
    sums = torch.empty(rows * splits, width, device=x.device, dtype=torch.float32)
    blocks = triton.cdiv(width, COLUMNS)
    if n:
        _scale_and_sum_kernel[(rows * splits, blocks)](
            x, other, stack, index, scaled, sums, width, stack.stride(0), span, splits, scale,
            index is not None, TOKENS, SPLIT, COLUMNS,
        )  # fmt: skip
    total = torch.empty(len(stack), width, device=x.device, dtype=torch.float32)
    count = rows * splits if n else 0
    _slot_sum_kernel[(len(stack), blocks)](sums, index, total, count, splits, width, index is not None, COLUMNS)
    return scaled, total


def scaled_basis(B: Tensor, b: Tensor | None, d: Tensor | None, scale: float) -> Tensor:
    """scale diag(b) B diag(d), (out, rank) in B's dtype, rounded once."""
    rows, rank = B.shape
    out = torch.empty(rows, rank, device=B.device, dtype=B.dtype)
    if rank:
        grid = (triton.cdiv(rows, TOKENS), triton.cdiv(rank, COLUMNS))
        _basis_kernel[grid](B, b, d, out, rows, rank, B.stride(0), scale, b is not None, d is not None, TOKENS, COLUMNS)
    return out


def basis_sums(M: Tensor, B: Tensor, b: Tensor | None, d: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """∂b = Σ_rank scale M ⊙ B d and ∂d = Σ_out scale M ⊙ b B, both fp32; M = gᵀ u (out, rank).

    b (out,), d (rank,), or both with a leading axis of 1, as their gradients then have, too.
    """
    rows, rank = B.shape
    blocks = triton.cdiv(rows, TOKENS)
    db = torch.empty((rows,) if b is None else b.shape, device=B.device, dtype=torch.float32)
    sums = torch.empty(blocks, rank, device=B.device, dtype=torch.float32)
    _basis_sums_kernel[(blocks,)](
        M, B, b, d, db, sums, rows, rank, B.stride(0), scale, b is not None, d is not None, TOKENS, COLUMNS
    )
    return db, sums.sum(0, keepdim=d is not None and d.dim() == 2)
