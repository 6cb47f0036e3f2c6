"""Attention over the packed tokens of one step: each span of neighbouring rows attends to its own part of the cache.

The tokens of all requests lie side by side in one row (1, T). On a GPU most of them attend each for itself instead, all
in one launch, and where each looks is data on the device (decode_attention). A model of transformers asks its
configuration for an attention function and a mask function by name; these are ours while an engine holds the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.engine.generation import decode_attention, scored_attention
from polyvera.engine.generation.scored_attention import Scoring
from polyvera.errors import ServeError

NAME = "polyvera"
# What one more call costs, in cached tokens that a joined call may look at in vain.
CALL_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that attend in one call: num_rows neighbouring cache rows with equally many tokens each.

    token, num_tokens: where they lie in the step. row, num_rows: of the cache. length: cached tokens looked at.
    """

    token: int
    num_tokens: int
    row: int
    num_rows: int
    length: int


def spans_of(rows: Sequence[int], lengths: Sequence[int], first: int = 0) -> list[Span]:
    """Spans of one token a row (decoding): rows ascending, each with its cached length, the new token included."""
    spans: list[Span] = []
    start = longest = 0
    for i in range(1, len(rows) + 1):
        longest = max(longest, lengths[i - 1])
        if i < len(rows) and rows[i] == rows[i - 1] + 1:
            joined = max(longest, lengths[i])
            if (i - start) * (joined - longest) + joined - lengths[i] <= CALL_TOKENS:
                continue
        spans.append(Span(first + start, i - start, rows[start], i - start, longest))
        start, longest = i, 0
    return spans


def joined_spans(pieces: Sequence[tuple[int, int, int]], first: int) -> list[Span]:
    """Spans of pieces of prompts, (row, start, stop) rows ascending: one for neighbours with equal positions."""
    spans: list[Span] = []
    for row, start, stop in pieces:
        size, last = stop - start, spans[-1] if spans else None
        if last and row == last.row + last.num_rows and last.num_tokens == size * last.num_rows and stop == last.length:
            spans[-1] = Span(last.token, last.num_tokens + size, last.row, last.num_rows + 1, stop)
        else:
            spans.append(Span(first, size, row, 1, stop))
        first += size
    return spans


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """What a forward's attention must know: its spans, and the position of every token, (T,).

    rows: where in the cache the first tokens are that attend each for itself and are in no span; None for none.
    """

    spans: Sequence[Span]
    positions: Tensor
    rows: Tensor | None = None


_STEP: ContextVar[AttentionMetadata | None] = ContextVar("polyvera_step", default=None)


@contextmanager
def attending(step: AttentionMetadata) -> Iterator[None]:
    """Forwards inside are of that step."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


class Masks:
    """What may be seen: each span's additive mask (rows, 1, tokens of a row, length), None where all may be.

    Tokens that attend each for itself have bounds in place of a mask.
    """

    def __init__(self, step: AttentionMetadata, sees: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.spans, self.num_single = step.spans, 0 if step.rows is None else len(step.rows)
        self._step, self._sees = step, sees
        self._visible: decode_attention.Visible | None = None
        self._masks = [_mask(span, step.positions, sees, dtype) for span in step.spans]
        self._grouped: dict[int, list[Tensor | None]] = {}

    def of(self, num_groups: int) -> list[Tensor | None]:
        """The same for num_groups query heads that read one key head, (rows, 1, groups * tokens, length)."""
        if num_groups not in self._grouped:
            self._grouped[num_groups] = [None if m is None else _repeated(m, num_groups) for m in self._masks]
        return self._grouped[num_groups]

    def visible(self, context: int) -> decode_attention.Visible:
        """What each of the single tokens sees."""
        if self._visible is None:
            assert self._step.rows is not None
            positions = self._step.positions[: self.num_single]
            self._visible = decode_attention.visible(self._sees, positions, self._step.rows, context)
        return self._visible


def _mask(span: Span, positions: Tensor, sees: Callable[..., Tensor], dtype: torch.dtype) -> Tensor | None:
    mine = positions[span.token : span.token + span.num_tokens].view(span.num_rows, 1, -1, 1)
    seen = sees(0, 0, mine, torch.arange(span.length, device=positions.device))
    if seen.device.type == "cpu" and bool(seen.all()):  # to ask a GPU is to wait for it
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _repeated(mask: Tensor, num_groups: int) -> Tensor:
    rows, _, tokens, length = mask.shape
    return mask.expand(rows, num_groups, tokens, length).reshape(rows, 1, num_groups * tokens, length)


def mask(*, mask_function: Callable[..., Tensor], dtype: torch.dtype, use_vmap: bool = False, **_: Any) -> Masks:
    """Stands in for transformers' masks. Raises ServeError for one that is not a plain rule over positions."""
    step = _STEP.get()
    if step is None:
        raise ServeError("this model belongs to a running engine: ask the engine, or stop it before you call the model")
    if use_vmap:
        raise ServeError("this model's attention mask is not a plain rule over positions, so rows cannot be packed")
    return Masks(step, mask_function, dtype)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: Masks,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (1, heads, T, width); key and value: the cache's whole storage (rows, context, key heads, width).

    Returns (1, T, heads, width).
    """
    scoring = None if softcap is None and s_aux is None else Scoring(softcap, s_aux)
    heads, tokens = query.shape[1:3]
    groups = heads // key.shape[2]
    alone = query[0, :, : masks.num_single].transpose(0, 1)
    if masks.num_single == tokens:
        return _singly(alone, key, value, masks, scaling, scoring)[None], None
    out = query.new_empty(tokens, heads, value.shape[-1])
    if masks.num_single:
        out[: masks.num_single] = _singly(alone, key, value, masks, scaling, scoring)
    for span, seen in zip(masks.spans, masks.of(groups), strict=True):
        at = slice(span.token, span.token + span.num_tokens)
        rows, width = span.num_rows, query.shape[-1]
        own = query[0, :, at].reshape(heads, rows, -1, width).transpose(0, 1)  # (rows, heads, tokens of a row, width)
        stored = slice(span.row, span.row + rows)
        grouped = own.reshape(rows, key.shape[2], -1, width)
        keys, values = (t[stored, : span.length].transpose(1, 2) for t in (key, value))
        if scoring is None:
            answer = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen, scale=scaling)
        else:
            answer = scored_attention.attend(grouped, keys, values, seen, scaling, scoring)
        out[at] = answer.reshape(rows, heads, -1, out.shape[-1]).transpose(1, 2).reshape(-1, heads, out.shape[-1])
    return out[None], None


def _singly(
    alone: Tensor, key: Tensor, value: Tensor, masks: Masks, scaling: float | None, scoring: Scoring | None
) -> Tensor:
    """Tokens that attend each for itself, (tokens, heads, width)."""
    seen = masks.visible(key.shape[1])
    if scoring is None:
        return decode_attention.attend(alone, key, value, seen, scaling)
    return scored_attention.attend_single(alone, key, value, seen, scaling, scoring)


def register() -> None:
    """Makes both known to transformers, by NAME."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
