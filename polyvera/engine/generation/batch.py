"""Batch: the tokens of one step side by side, and all that the forward must know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from polyvera.adapter.pinned_memory import to_device
from polyvera.engine.generation.attention import AttentionMetadata, joined_spans, spans_of
from polyvera.engine.generation.rows import Chunk, Row


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    ids, positions: (1, T). slot_mapping: (T,), row * context + position in the cache. slots: the adapter of every
    token. last: (rows,), the tokens whose logits are needed. rows: whose next token they choose. attention: the spans.
    is_decoding: whether no prompt is read. scored: chunks that need the logits of all their tokens, at scored_at.
    """

    ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    slots: tuple[int, ...]
    last: Tensor
    rows: tuple[Row, ...]
    attention: AttentionMetadata
    is_decoding: bool
    scored: tuple[Chunk, ...]
    scored_at: tuple[int, ...]


def make_batch(
    decoding: Sequence[Chunk], reading: Sequence[Chunk], context: int, device: torch.device, single_pairs: int = 0
) -> Batch:
    """The tokens that attend each for itself, then the rows that decode, then the pieces of prompts.

    single_pairs: tokens of a chunk attend each for itself where they see so many keys at most, counted for each token;
    0 for none. One more span costs a GPU as much as many keys that are read again for each token.
    """
    single = [chunk for chunk in (*decoding, *reading) if chunk.num_pairs <= single_pairs]
    decoding = [chunk for chunk in decoding if chunk.num_pairs > single_pairs]
    reading = sorted((c for c in reading if c.num_pairs > single_pairs), key=lambda chunk: chunk.row.index)
    chunks, sizes = (*single, *decoding, *reading), [chunk.stop - chunk.start for chunk in single]
    positions = to_device([at for c in chunks for at in range(c.start, c.stop)], device)
    starts = [chunk.row.index * context for chunk in chunks]
    slots = tuple(slot for c in chunks for slot in (c.row.slot,) * (c.stop - c.start))
    ends = list(accumulate(chunk.stop - chunk.start for chunk in chunks))
    spans = spans_of([c.row.index for c in decoding], [c.stop for c in decoding], sum(sizes))
    spans += joined_spans([(c.row.index, c.start, c.stop) for c in reading], sum(sizes) + len(decoding))
    rows = [row for c, size in zip(single, sizes, strict=True) for row in (c.row.index,) * size]
    scored = [(chunk, end) for chunk, end in zip(chunks, ends, strict=True) if chunk.is_scored]
    return Batch(
        to_device([token for c in chunks for token in c.row.tokens(c.start, c.stop)], device)[None],
        positions[None],
        to_device([at for c, s in zip(chunks, starts, strict=True) for at in range(s + c.start, s + c.stop)], device),
        slots,
        to_device([end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.is_last], device),
        tuple(chunk.row for chunk in chunks if chunk.is_last),
        AttentionMetadata(spans, positions, to_device(rows, device) if rows else None),
        all(chunk.stop - chunk.start == 1 for chunk in chunks),
        tuple(chunk for chunk, _ in scored),
        tuple(at for chunk, end in scored for at in range(end - (chunk.stop - chunk.start), end)),
    )
