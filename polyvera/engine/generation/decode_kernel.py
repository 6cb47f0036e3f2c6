"""The Triton kernels of decode attention. Imported only where they run: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# tl.dot multiplies tiles of 16 rows or more.
MIN_TILE = 16
# Keys are read in tiles of about this size, so that a few of them fit into the shared memory of any GPU.
TILE_BYTES, MAX_TILE_KEYS = 16384, 128
# Splits of one token's keys at most, and the programs that fill a GPU (two for each of 132 multiprocessors).
MAX_SPLITS, FULL_PROGRAMS = 16, 264
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q, k, v, rows, lo, hi, out, peaks, sums, scale,
    q_token, q_head, q_at, k_row, k_key, k_head, v_row, v_key, v_head,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_TILE: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr, V_WIDTH: tl.constexpr, V_TILE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One token, one key head with its group of query heads, one split of the keys that the token sees."""
    program, split = tl.program_id(0), tl.program_id(1)
    token, head = program // KV_HEADS, program % KV_HEADS
    row = tl.load(rows + token).to(tl.int64)
    first, end = tl.load(lo + token).to(tl.int32), tl.load(hi + token).to(tl.int32)
    share = ((end - first + SPLITS * KEYS - 1) // (SPLITS * KEYS)) * KEYS
    first += split * share
    end = tl.minimum(end, first + share)

    group, at, at_v, key = tl.arange(0, GROUPS_TILE), tl.arange(0, WIDTH_TILE), tl.arange(0, V_TILE), tl.arange(0, KEYS)
    heads = head * GROUPS + group
    mine = group < GROUPS
    q_tile = tl.load(
        q + token.to(tl.int64) * q_token + heads[:, None] * q_head + at[None, :] * q_at,
        mask=mine[:, None] & (at < WIDTH)[None, :],
        other=0.0,
    )
    k_start, v_start = k + row * k_row + head * k_head, v + row * v_row + head * v_head
    peak = tl.full((GROUPS_TILE,), float("-inf"), tl.float32)
    total = tl.zeros((GROUPS_TILE,), tl.float32)
    mixed = tl.zeros((GROUPS_TILE, V_TILE), tl.float32)
    for start in range(first, end, KEYS):
        keys = start + key
        seen = keys < end
        k_tile = tl.load(
            k_start + keys[None, :] * k_key + at[:, None], mask=seen[None, :] & (at < WIDTH)[:, None], other=0.0
        )
        scores = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale  # scale holds log2(e): exp2 below is exp
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        v_tile = tl.load(
            v_start + keys[:, None] * v_key + at_v[None, :],
            mask=seen[:, None] & (at_v < V_WIDTH)[None, :],
            other=0.0,
        )
        mixed = mixed * fade[:, None] + tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        total = total * fade + tl.sum(weights, 1)
        peak = higher

    at_head = token.to(tl.int64) * (KV_HEADS * GROUPS) + heads
    inside = mine[:, None] & (at_v < V_WIDTH)[None, :]
    if SPLITS == 1:
        answer = mixed / total[:, None]
        tl.store(out + at_head[:, None] * V_WIDTH + at_v[None, :], answer.to(out.dtype.element_ty), mask=inside)
    else:
        at_split = at_head * SPLITS + split
        tl.store(out + at_split[:, None] * V_WIDTH + at_v[None, :], mixed, mask=inside)
        tl.store(peaks + at_split, peak, mask=mine)
        tl.store(sums + at_split, total, mask=mine)


@triton.jit
def _combine(parts, peaks, sums, out, V_WIDTH: tl.constexpr, V_TILE: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one token and head put together; a split that saw no key has the peak -inf and counts nothing."""
    at_head = tl.program_id(0).to(tl.int64)
    split, at = tl.arange(0, SPLITS), tl.arange(0, V_TILE)
    at_split = at_head * SPLITS + split
    peak = tl.load(peaks + at_split)
    weights = tl.exp2(peak - tl.max(peak, 0))
    total = tl.sum(weights * tl.load(sums + at_split), 0)
    part = tl.load(parts + at_split[:, None] * V_WIDTH + at[None, :], mask=(at < V_WIDTH)[None, :], other=0.0)
    answer = tl.sum(part * weights[:, None], 0) / total
    tl.store(out + at_head * V_WIDTH + at, answer.to(out.dtype.element_ty), mask=at < V_WIDTH)


def num_splits(num_programs: int) -> int:
    """Into how many parts each token's keys are split, a power of two, so that few tokens fill a GPU, too."""
    splits = 1
    while splits < MAX_SPLITS and 2 * splits * num_programs <= FULL_PROGRAMS:
        splits *= 2
    return splits


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, lo: Tensor, hi: Tensor, scaling: float) -> Tensor:
    """As decode_attention.attend_naive; nothing of it is read on the host."""
    (tokens, heads, width), (key_heads, value_width) = q.shape, v.shape[2:]
    groups, splits = heads // key_heads, num_splits(tokens * key_heads)
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    width_tile, value_tile = (max(MIN_TILE, triton.next_power_of_2(n)) for n in (width, value_width))
    keys = TILE_BYTES // (max(width_tile, value_tile) * k.element_size())
    out = q.new_empty(tokens, heads, value_width)
    parts = out if splits == 1 else q.new_empty(tokens, heads, splits, value_width, dtype=torch.float32)
    peaks, sums = q.new_empty(2, tokens, heads, splits if splits > 1 else 0, dtype=torch.float32)
    _attend[(tokens * key_heads, splits)](
        *(q, k, v, rows, lo, hi, parts, peaks, sums, scaling * LOG2_E),
        *(*q.stride(), *k.stride()[:3], *v.stride()[:3]),
        KV_HEADS=key_heads,
        GROUPS=groups,
        GROUPS_TILE=max(MIN_TILE, triton.next_power_of_2(groups)),
        WIDTH=width,
        WIDTH_TILE=width_tile,
        V_WIDTH=value_width,
        V_TILE=value_tile,
        KEYS=min(MAX_TILE_KEYS, max(MIN_TILE, keys)),
        SPLITS=splits,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )
    if splits > 1:
        _combine[(tokens * heads,)](
            *(parts, peaks, sums, out), V_WIDTH=value_width, V_TILE=value_tile, SPLITS=splits, num_warps=4
        )
    return out
