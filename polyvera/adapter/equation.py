"""The one equation, plain and fast.

    y = g ⊙ (W x + b ⊙ B C (d ⊙ A x))        g = m / ‖W + ΔW‖ of each row, or 1
    ΔW = diag(b) B C diag(d) A

Shapes: A (rank, in), d (rank,), C (rank, rank), B (out, rank), b (out,), m (out,); x (..., in), u = A x (..., rank),
y (..., out). d, C, b and m may carry leading axes that broadcast against the rows of x: one adapter a row. An absent
letter is 1. The core C is applied to u first; what is left is the equation without it. `scale` is (factor, divisor),
the number that stands for b in the LoRA rows. The norm is a constant of the backward pass (DoRA, Liu 2024, 4.3).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.adapter.method import ONE, Scale
from polyvera.adapter.packed_linear import is_packed, linear


@dataclass(frozen=True, slots=True)
class Vectors:
    """What stands between u = A x and the output: B, d, b, scale, m over the row norm, and the core C."""

    B: Tensor
    d: Tensor | None = None
    b: Tensor | None = None
    scale: Scale = ONE
    m: Tensor | None = None
    norm: Tensor | None = None
    C: Tensor | None = None


def delta(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    d: Tensor | None = None,
    b: Tensor | None = None,
    scale: Scale = ONE,
    C: Tensor | None = None,
) -> Tensor:
    """b ⊙ B C (d ⊙ A x), in the order in which PEFT rounds it. (..., in) -> (..., out)."""
    u, v = mixed(F.linear(x, A), Vectors(B, d, b, scale, C=C))
    return _scaled(_expand(u, B, v.d), b, scale)


def delta_weight(
    A: Tensor,
    B: Tensor,
    d: Tensor | None = None,
    b: Tensor | None = None,
    scale: Scale = ONE,
    C: Tensor | None = None,
) -> Tensor:
    """ΔW = diag(b) B C diag(d) A, (out, in), or (experts, out, in) where any factor has that leading axis."""
    right = A if d is None else d[..., None] * A
    product = (B if b is None else b[..., None] * B) @ (right if C is None else C @ right)
    return _scaled(product, None, scale)


def mixed(u: Tensor, v: Vectors) -> tuple[Tensor, Vectors]:
    """u (..., rank) and v as they are without a core; else C (d ⊙ u), and what is left of v.

    v.C: (rank, rank), (1, rank, rank), or with the leading axes of d: one for each row or for each token.
    """
    if v.C is None:
        return u, v
    with without_autocast(u):
        z = u if v.d is None else (v.d * u).to(u.dtype)
        return _mixed(z, v.C.to(u.dtype)), Vectors(v.B, None, v.b, v.scale, v.m, v.norm)


def _mixed(z: Tensor, C: Tensor) -> Tensor:
    if C.numel() == C.shape[-1] ** 2:  # one for all
        return F.linear(z, C.view(C.shape[-2:]))
    if C.shape[-3] == 1:  # one for all tokens of a row
        return z @ C.squeeze(-3).mT
    return (z.unsqueeze(-2) @ C.mT).squeeze(-2)


def row_norm(W: Tensor, dW: Tensor) -> Tensor:
    """‖W + ΔW‖ of each row, (out,), from the dense ΔW; a row of zeros counts as 1."""
    norm = torch.linalg.norm(W + dW, dim=1)
    return torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True, slots=True)
class NormParts:
    """What ‖W + ΔW‖ needs of W and A: ‖W‖² (out,), W Aᵀ (out, rank), A Aᵀ (rank, rank); constants for a frozen A."""

    square: Tensor
    WA: Tensor
    AA: Tensor

    @classmethod
    def of(cls, W: Tensor, A: Tensor) -> NormParts:
        """W (out, in), A (rank, in); each may be a stack of experts'."""
        return cls(torch.linalg.norm(W, dim=-1).square(), W @ A.mT, A @ A.mT)  # √(n²) is n, so a fresh m gives g = 1


def factored_row_norm(parts: NormParts, vectors: Vectors) -> Tensor:
    """row_norm without a dense ΔW: ‖W‖² + 2⟨W Aᵀ, S⟩ + ⟨S A Aᵀ, S⟩ by rows, S = diag(b) B C diag(d). (out,), fp32."""
    S = vectors.B if vectors.C is None else vectors.B @ vectors.C
    S = S if vectors.d is None else S * vectors.d[..., None, :]
    factor = vectors.scale[0] / vectors.scale[1]
    S = S * factor if vectors.b is None else S * vectors.b[..., None]
    square = parts.square + ((2 * parts.WA + S @ parts.AA) * S).sum(-1)
    return torch.where(square > 0, square, 1.0).sqrt()


# The kinds of device whose products of one dtype go through the kernels of fused.py; a test adds the CPU.
FUSED_ON = {"cuda"}
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def kernels() -> Any:
    """The module of fused kernels, None where Triton is not installed."""
    try:
        return import_module("polyvera.adapter.fused")
    except ImportError:
        return None


def is_fused(y: Tensor, u: Tensor, B: Tensor) -> bool:
    """Whether the kernels take these: one dtype, rows that lie whole, on the device that is current."""
    if y.device.type not in FUSED_ON or y.dtype not in FUSED_DTYPES or torch.compiler.is_compiling():
        return False
    if not y.dtype == u.dtype == B.dtype or B.stride(-1) != 1:
        return False
    return (not y.is_cuda or y.device.index == torch.cuda.current_device()) and kernels() is not None


def adapt(y: Tensor, u: Tensor, v: Vectors, bias: Tensor | None = None, is_fresh: bool = False) -> Tensor:
    """The adapted output from the base layer's y = W x + bias and u = A x: the fast path where gradients are asked for.

    y (..., out) in the base's dtype, u (..., rank) in the adapter's; returns the dtype of y. is_fresh: nobody else
    reads y, so that it may be written over.
    """
    u, v = mixed(u, v)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (y, u, v.B, v.d, v.b, v.m)):
        if v.m is None and _is_one(v) and is_fused(y, u, v.B):
            return _AdaptOne.apply(y, u, v.B, v.d, v.b, v.scale, is_fresh)  # type: ignore[no-untyped-call,no-any-return]
        d, b = (None if t is None else _alone(t) for t in (v.d, v.b))
        out: Tensor = _Adapt.apply(y, u, v.B, d, b, v.m, v.norm, bias, v.scale)  # type: ignore[no-untyped-call]
        return out
    if v.m is None and v.b is not None and v.scale == ONE and v.B.dtype == y.dtype and is_packed():
        w = _expand(u, v.B, v.d)
        return torch.addcmul(y, w, v.b, out=w)  # one pass over memory and one rounding less
    return adapt_naive(y, u, v, bias)


def adapt_naive(y: Tensor, u: Tensor, v: Vectors, bias: Tensor | None = None) -> Tensor:
    """The same in plain operations: the reference of the fast path, and the forward of both."""
    u, v = mixed(u, v)
    return add_delta(y, _expand(u, v.B, v.d), v, bias)


def add_delta(y: Tensor, w: Tensor, v: Vectors, bias: Tensor | None = None) -> Tensor:
    """The adapted output from y and w = B (d ⊙ u), a fresh tensor that may be written over."""
    if v.m is None or v.norm is None:
        return _add(_scaled(w, v.b, v.scale), y).to(y.dtype)
    gain = v.m / v.norm
    plain = y if bias is None else y - bias
    return _add(_add(_scaled(_times(w, gain), v.b, v.scale), (gain - 1) * plain), y).to(y.dtype)


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Operations inside keep the dtypes that they are given."""
    device = like.device.type  # entering autocast takes longer than a small product, so only where it is on
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _expand(u: Tensor, B: Tensor, d: Tensor | None) -> Tensor:
    return linear(u if d is None else (d * u).to(B.dtype), B)


def _scaled(w: Tensor, b: Tensor | None, scale: Scale) -> Tensor:
    w = w if b is None else _times(w, b)
    w = w if scale[0] == 1.0 else _times(w, scale[0])
    return w if scale[1] == 1.0 else (w / scale[1] if torch.is_grad_enabled() else w.div_(scale[1]))


# w is a fresh product of this file's own: without a graph it is safe, and saves a pass over memory, to reuse it.
def _times(w: Tensor, factor: Tensor | float) -> Tensor:
    return w * factor if torch.is_grad_enabled() else w.mul_(factor)


def _add(w: Tensor, y: Tensor) -> Tensor:
    wider = torch.promote_types(w.dtype, y.dtype) != w.dtype
    return w + y if wider or torch.is_grad_enabled() else w.add_(y)


class _Adapt(torch.autograd.Function):
    """adapt_naive with a backward that keeps only u (and, for m, the output itself) and recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        u: Tensor,
        B: Tensor,
        d: Tensor | None,
        b: Tensor | None,
        m: Tensor | None,
        norm: Tensor | None,
        bias: Tensor | None,
        scale: Scale,
    ) -> Tensor:
        with without_autocast(u):
            out = adapt_naive(y, u, Vectors(B, d, b, scale, m, norm), bias)
        ctx.scale = scale
        ctx.save_for_backward(u, B, d, b, m, norm, out if m is not None and m.requires_grad else None, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, B, d, b, m, norm, out, bias = ctx.saved_tensors
        gain = None if m is None else m / norm
        with without_autocast(u):
            g = grads[0].to(u.dtype)
            dy = grads[0] if gain is None else (g * gain).to(grads[0].dtype)
            dm = None if out is None else _m_grad(g, out, m, bias)
            rows = any(t is not None and t.dim() > 1 for t in (d, b, m))
            backward = _rows_backward if rows else _one_backward
            du, dB, dd, db = backward(g, u, B, d, b, gain, ctx.scale, ctx.needs_input_grad[1:5])
        return dy, du, dB, dd, db, dm, None, None, None


def _is_one(v: Vectors) -> bool:
    return all(t is None or t.dim() == 1 or (t.dim() == 2 and len(t) == 1) for t in (v.d, v.b))


def _alone(t: Tensor) -> Tensor:
    """A stack of one slot's vector as that vector."""
    return t.squeeze(0) if t.dim() == 2 and len(t) == 1 else t


class _AdaptOne(torch.autograd.Function):
    """adapt_naive for one adapter and no gain, all of it in three products with S = scale diag(b) B diag(d).

    out = y + u Sᵀ is one product that adds to y where it lies. ∂u = g S. All else are sums over M = gᵀ u, (out, rank):
    ∂b = rowsum(scale M ⊙ B d), ∂d = colsum(scale M ⊙ b B), ∂B = scale b M d. M costs as many operations as w = B z does
    and spares z, w and h, which are as tall as the batch: 4 (tokens, out) and 3 (tokens, rank) passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, u: Tensor, B: Tensor, d: Tensor | None, b: Tensor | None, scale: Scale, is_fresh: bool
    ) -> Tensor:
        ctx.factor = scale[0] / scale[1]
        ctx.save_for_backward(u, B, d, b)
        S = kernels().scaled_basis(B, b, d, ctx.factor)
        if is_fresh:
            ctx.mark_dirty(y)
        with without_autocast(u):
            into = y if is_fresh else y.clone(memory_format=torch.contiguous_format)
            into.view(-1, y.shape[-1]).addmm_(u.reshape(-1, u.shape[-1]), S.t())
        return into

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, B, d, b = ctx.saved_tensors
        need_u, need_B, need_d, need_b = ctx.needs_input_grad[1:5]
        g2, u2 = grads[0].reshape(-1, B.shape[0]), u.reshape(-1, u.shape[-1])
        du = dB = dd = db = None
        with without_autocast(u):
            if need_u:
                du = (g2 @ kernels().scaled_basis(B, b, d, ctx.factor)).view_as(u)
            if need_B or need_d or need_b:
                M = g2.t() @ u2
            if need_d or need_b:
                db, dd = kernels().basis_sums(M, B, b, d, ctx.factor)
            if need_B:
                dB = kernels().scaled_basis(M, b, d, ctx.factor)
        return grads[0], du, dB, dd if need_d else None, db if need_b else None, None, None


Needs = tuple[bool, bool, bool, bool]
Grads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _one_backward(
    g: Tensor, u: Tensor, B: Tensor, d: Tensor | None, b: Tensor | None, gain: Tensor | None, scale: Scale, needs: Needs
) -> Grads:
    """One adapter for all rows: ∂B and ∂b are reductions of M = gᵀ (d ⊙ u), (out, rank), the others of h = g b B."""
    need_u, need_B, need_d, need_b = needs
    g2, u2 = g.reshape(-1, g.shape[-1]), u.reshape(-1, u.shape[-1])
    outer = _row_scale(B, gain, scale)  # all that multiplies a row of B, save b
    left = outer if b is None else (b if outer is None else outer * b)
    du = dB = dd = db = None
    if need_u or need_d:
        h = g2 @ (B if left is None else (left[:, None] * B).to(B.dtype))
        dd = exact(h * u2).sum(0) if need_d else None
        du = (h if d is None else h.mul_(d)).view_as(u) if need_u else None
    if need_B or need_b:
        M = exact(g2.T @ (u2 if d is None else (u2 * d).to(u2.dtype)))
        if need_B:
            dB = M if left is None else left[:, None] * M
        if need_b:
            rowwise = (M * B if need_B else M.mul_(B)).sum(1)
            db = rowwise if outer is None else rowwise * outer
    return du, dB, dd, db


def _rows_backward(
    g: Tensor, u: Tensor, B: Tensor, d: Tensor | None, b: Tensor | None, gain: Tensor | None, scale: Scale, needs: Needs
) -> Grads:
    """One adapter a row: two plain products with the shared B, then sums over the tokens of each row."""
    need_u, need_B, need_d, need_b = needs
    outer = _row_scale(B, gain, scale)
    g = g if outer is None else g * outer
    du = dB = dd = db = None
    left = g if b is None else g * b
    if need_u or need_d:
        h = left.to(B.dtype) @ B
        du = h if d is None else h * d
        dd = (h * u).sum_to_size(d.shape) if need_d and d is not None else None
    if need_b and b is not None:
        db = (_expand(u, B, d) * g).sum_to_size(b.shape)
    if need_B:
        z = u if d is None else d * u
        dB = left.reshape(-1, left.shape[-1]).to(B.dtype).T @ z.reshape(-1, z.shape[-1]).to(B.dtype)
    return du, dB, dd, db


def exact(t: Tensor) -> Tensor:
    """In fp32, or wider where it is."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _row_scale(B: Tensor, gain: Tensor | None, scale: Scale) -> Tensor | None:
    factor = scale[0] / scale[1]
    if gain is None:
        return None if factor == 1.0 else torch.full((B.shape[0],), factor, device=B.device)
    return gain if factor == 1.0 else gain * factor


def _m_grad(g: Tensor, out: Tensor, m: Tensor, bias: Tensor | None) -> Tensor:
    """∂m = Σ g ⊙ (W x + ΔW x) / ‖W + ΔW‖ from the output: (out - bias) / m, where m is not 0."""
    plain = out.to(g.dtype) if bias is None else out.to(g.dtype) - bias
    return (g * plain).sum_to_size(m.shape) / torch.where(m == 0, torch.inf, m)
