"""Batch: the tokens of one step side by side, and all that the forward must know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvera.engine.generation.attention import AttentionMetadata, Span, spans_of
from polyvera.engine.generation.rows import Chunk, Row


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    ids, positions: (1, T). slot_mapping: (T,), row * context + position in the cache. slots: the adapter of every
    token. last: (rows,), the tokens whose logits are needed. rows: whose next token they choose. attention: the spans.
    is_decoding: whether no prompt is read.
    """

    ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    slots: tuple[int, ...]
    last: Tensor
    rows: tuple[Row, ...]
    attention: AttentionMetadata
    is_decoding: bool


def make_batch(decoding: Sequence[Chunk], reading: Sequence[Chunk], context: int, device: torch.device) -> Batch:
    """The rows that decode, then the pieces of prompts."""
    ids: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    slots: list[int] = []
    last: list[int] = []
    rows: list[Row] = []
    spans = spans_of([c.row.index for c in decoding], [c.stop for c in decoding])
    first = len(decoding)
    for chunk in reading:
        spans.append(Span(first, chunk.stop - chunk.start, chunk.row.index, 1, chunk.stop))
        first += chunk.stop - chunk.start
    for chunk in (*decoding, *reading):
        row, size = chunk.row, chunk.stop - chunk.start
        ids += row.tokens(chunk.start, chunk.stop)
        positions += range(chunk.start, chunk.stop)
        slot_mapping += range(row.index * context + chunk.start, row.index * context + chunk.stop)
        slots += [row.slot] * size
        if chunk.is_last:
            last.append(len(ids) - 1)
            rows.append(row)
    at = torch.tensor([positions], device=device)
    return Batch(
        torch.tensor([ids], device=device),
        at,
        torch.tensor(slot_mapping, device=device),
        tuple(slots),
        torch.tensor(last, device=device, dtype=torch.long),
        tuple(rows),
        AttentionMetadata(spans, at[0]),
        not reading,
    )
