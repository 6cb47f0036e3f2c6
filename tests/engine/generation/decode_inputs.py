"""Queries, keys and values of single tokens, and the rules of what each of them sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTEXT = 300


def causal(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def sliding(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key > query - 50)


def chunked(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key // 64 == query // 64)


RULES = (causal, sliding, chunked)


def drawn(tokens: int, key_heads: int, groups: int, width: int, dtype: torch.dtype, v_width: int = 0) -> Any:
    """q, k, v, and a cache row and a position for each token; several tokens may read one row."""
    draw = torch.Generator().manual_seed(tokens + width)
    q = torch.randn(tokens, key_heads * groups, width, generator=draw)
    k = torch.randn(6, CONTEXT, key_heads, width, generator=draw)
    v = torch.randn(6, CONTEXT, key_heads, v_width or width, generator=draw)
    rows = torch.randint(6, (tokens,), generator=draw)
    positions = torch.randint(CONTEXT, (tokens,), generator=draw)
    positions[0] = 0
    return *(t.to(DEVICE, dtype) for t in (q, k, v)), rows.to(DEVICE), positions.to(DEVICE)
