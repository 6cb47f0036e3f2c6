"""Attention of single tokens, each over its own row of the cache: where it looks is data on the device.

So one launch serves tokens of any rows and lengths, and one captured graph serves every step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

log = logging.getLogger(__name__)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, slots=True)
class Visible:
    """What each of some tokens sees: its row of the cache, its first key there, and one past its last, (tokens,)."""

    rows: Tensor
    lo: Tensor
    hi: Tensor


def visible(sees: Callable[..., Tensor], positions: Tensor, rows: Tensor, context: int) -> Visible:
    """By a mask function of transformers whose keys are neighbours: all, a sliding window or a chunk of them.

    positions, rows: (tokens,). context: keys of a row of the cache. Nothing is read on the host.
    """
    at = torch.arange(context, device=positions.device)
    seen = sees(0, 0, positions[:, None], at)
    lo = torch.where(seen, at, context).amin(-1)
    return Visible(rows, lo, torch.where(seen, at + 1, 0).amax(-1))


def attend_naive(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, lo: Tensor, hi: Tensor, scaling: float) -> Tensor:
    """q (tokens, heads, width), k and v (cache rows, context, key heads, width) -> (tokens, heads, width of v).

    Token i reads keys lo[i] to hi[i] - 1 of cache row rows[i], one at least; numbers outside of them cannot reach it.
    """
    tokens, heads, _ = q.shape
    at = torch.arange(k.shape[1], device=q.device)
    seen = (at >= lo[:, None]) & (at < hi[:, None])
    own = torch.unflatten(q, 1, (k.shape[2], -1))
    scores = torch.einsum("tkgw,tckw->tkgc", own.float(), k[rows].float()) * scaling
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    values = v[rows].float().masked_fill(~seen[:, :, None, None], 0.0)
    return torch.einsum("tkgc,tckw->tkgw", weights, values).reshape(tokens, heads, -1).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Visible, scaling: float | None) -> Tensor:
    """attend_naive by the fastest way that the device has. scaling: None is 1/√width."""
    chosen = _kernel() if q.is_cuda else attend_naive
    return chosen(q, k, v, seen.rows, seen.lo, seen.hi, q.shape[-1] ** -0.5 if scaling is None else scaling)


@cache
def _kernel() -> Attend:
    if find_spec("triton") is None:
        return attend_naive
    from polyvera.engine.generation import decode_kernel

    try:  # Triton builds its kernels with a compiler of the machine, which may lack one
        one, at = torch.ones(1, 1, 1, 16, device="cuda"), torch.arange(2, device="cuda")
        decode_kernel.attend(one[0], one, one, at[:1], at[:1], at[1:], 1.0)
    except Exception:
        log.warning("Triton cannot build its kernels here: decoding is slower without them", exc_info=True)
        return attend_naive
    return decode_kernel.attend
