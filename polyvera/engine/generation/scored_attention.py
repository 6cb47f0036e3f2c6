"""Attention whose scores are capped (Gemma 2) or share their weights with sinks (gpt-oss), which fused kernels lack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyvera.engine.generation.decode_attention import Visible


@dataclass(frozen=True, slots=True)
class Scoring:
    """softcap: c of c tanh(score / c). sinks: (heads,), a score of each head that no key has."""

    softcap: float | None
    sinks: Tensor | None

    def of_group(self, num_key_heads: int, num_tokens: int) -> Tensor | None:
        """The sinks of query heads that read one key head, token by token, (1, key heads, groups * tokens, 1)."""
        if self.sinks is None:
            return None
        return self.sinks.view(num_key_heads, -1).repeat_interleave(num_tokens, 1)[None, :, :, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, scoring: Scoring) -> Tensor:
    """q (rows, key heads, groups * tokens, width), k and v (rows, key heads, length, width); mask is added."""
    scores = (q @ k.mT).float() * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if mask is not None:
        scores = scores + mask
    groups = scoring.sinks.numel() // k.shape[1] if scoring.sinks is not None else 1
    sinks = scoring.of_group(k.shape[1], q.shape[2] // groups)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


def attend_single(q: Tensor, k: Tensor, v: Tensor, seen: Visible, scaling: float | None, scoring: Scoring) -> Tensor:
    """q (tokens, heads, width), k and v (cache rows, context, key heads, width) -> (tokens, heads, width of v)."""
    at = torch.arange(k.shape[1], device=q.device)
    hidden = (at < seen.lo[:, None]) | (at >= seen.hi[:, None])
    keys, values = (t[seen.rows].masked_fill(hidden[:, :, None, None], 0.0).transpose(1, 2) for t in (k, v))
    mask = torch.zeros(hidden.shape, device=q.device).masked_fill_(hidden, -torch.inf)[:, None, None]
    own = torch.unflatten(q, 1, (k.shape[2], -1))  # (tokens, key heads, groups, width)
    return attend(own, keys, values, mask, scaling, scoring).flatten(1, 2).to(q.dtype)
