"""Batch: the tokens of one step side by side, and all that the forward must know of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvera.engine.generation.attention import Span, Step, spans_of
from polyvera.engine.scheduler import Row, Work


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    ids, positions: (1, T). places: (T,), row * context + position in the cache. slots: the adapter of every token.
    last: (rows,), the tokens whose logits are asked for. rows: whose next token they choose. is_decoding: whether no
    prompt is read.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    slots: tuple[int, ...]
    last: Tensor
    rows: tuple[Row, ...]
    step: Step
    is_decoding: bool


def make_batch(decoding: Sequence[Work], reading: Sequence[Work], context: int, device: torch.device) -> Batch:
    """The rows that decode, then the pieces of prompts."""
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    slots: list[int] = []
    last: list[int] = []
    rows: list[Row] = []
    spans = spans_of([w.row.place for w in decoding], [w.stop for w in decoding])
    first = len(decoding)
    for work in reading:
        spans.append(Span(first, work.stop - work.start, work.row.place, 1, work.stop))
        first += work.stop - work.start
    for work in (*decoding, *reading):
        row, size = work.row, work.stop - work.start
        ids += row.tokens(work.start, work.stop)
        positions += range(work.start, work.stop)
        places += range(row.place * context + work.start, row.place * context + work.stop)
        slots += [row.slot] * size
        if work.is_last:
            last.append(len(ids) - 1)
            rows.append(row)
    at = torch.tensor([positions], device=device)
    return Batch(
        torch.tensor([ids], device=device),
        at,
        torch.tensor(places, device=device),
        tuple(slots),
        torch.tensor(last, device=device, dtype=torch.long),
        tuple(rows),
        Step(spans, at[0]),
        not reading,
    )
