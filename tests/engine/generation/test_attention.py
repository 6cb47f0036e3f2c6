"""Packed rows attend as each row does alone."""

import random

import pytest
import torch
from tiny_serve import make_tokenizer
from torch.nn import functional as F

from polyvera.engine.generation.attention import (
    CALL_TOKENS,
    AttentionMetadata,
    Masks,
    Span,
    attend,
    joined_spans,
    mask,
    spans_of,
)
from polyvera.engine.generation.batch import make_batch
from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.request import GREEDY, Request
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.generation.sampler import RequestSampler
from polyvera.errors import ServeError

TOKENIZER = make_tokenizer()
CONTEXT, WIDTH = 40, 8


def causal(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key <= query


def sliding(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & (key > query - 5)


def row(index: int, length: int, computed: int, slot: int = 0) -> Row:
    asked = Request([100 * index + i for i in range(length)], None, GREEDY, lambda output: None)
    return Row(asked, index, slot, RequestSampler(GREEDY, asked.prompt, frozenset()), Detokenizer(TOKENIZER), computed)


@pytest.mark.parametrize("seed", range(20))
def test_spans_of_decoding_rows_cover_each_row_once_and_look_at_all_that_it_has(seed: int) -> None:
    draw = random.Random(seed)
    rows = sorted(draw.sample(range(40), draw.randint(1, 30)))
    lengths = [draw.choice([draw.randint(1, 2000), 100, 110]) for _ in rows]
    spans = spans_of(rows, lengths, first=7)
    assert [s.row + i for s in spans for i in range(s.num_rows)] == rows
    assert [s.token + i for s in spans for i in range(s.num_rows)] == [7 + i for i in range(len(rows))]
    for span in spans:
        mine = [length for r, length in zip(rows, lengths, strict=True) if span.row <= r < span.row + span.num_rows]
        assert span.length == max(mine) and span.num_tokens == span.num_rows
    wasted = sum(s.length * s.num_rows for s in spans) - sum(lengths)
    assert wasted <= CALL_TOKENS * len(rows)


def test_neighbours_of_like_lengths_are_one_call_and_unlike_ones_are_not() -> None:
    assert spans_of([0, 1, 2], [10, 12, 9]) == [Span(0, 3, 0, 3, 12)]
    assert spans_of([0, 1, 3], [10, 12, 9]) == [Span(0, 2, 0, 2, 12), Span(2, 1, 3, 1, 9)]
    assert spans_of([4, 5], [10, 2000]) == [Span(0, 1, 4, 1, 10), Span(1, 1, 5, 1, 2000)]
    assert spans_of([], []) == []


def test_pieces_of_prompts_with_equal_positions_in_neighbouring_rows_are_one_span() -> None:
    pieces = [(1, 0, 5), (2, 0, 5), (3, 0, 6), (4, 2, 6), (6, 2, 6), (7, 2, 6)]
    found = joined_spans(pieces, 3)
    assert found == [Span(3, 10, 1, 2, 5), Span(13, 6, 3, 1, 6), Span(19, 4, 4, 1, 6), Span(23, 8, 6, 2, 6)]


@pytest.mark.parametrize("sees", [causal, sliding])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("single_pairs", [0, 60, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_every_token_attends_to_its_own_row_alone(seed: int, single_pairs: int, groups: int, sees) -> None:
    torch.manual_seed(seed)
    draw, key_heads = random.Random(seed), 2
    heads = key_heads * groups
    stored = torch.randn(2, 8, CONTEXT, key_heads, WIDTH)
    ends = [draw.randint(1, CONTEXT) for _ in range(5)]
    pieces = [(r, ends[i] - 1, ends[i]) for i, r in enumerate((0, 1, 2, 4, 5))]
    pieces += [(6, draw.randint(0, 9), draw.randint(10, 30)), (7, 0, draw.randint(2, 12))]
    works = [Chunk(row(r, stop, start), start, stop) for r, start, stop in pieces]
    batch = make_batch(works[:5], works[5:], CONTEXT, torch.device("cpu"), single_pairs)
    order = sorted(
        range(7), key=lambda i: works[i].num_pairs > single_pairs
    )  # the pieces that attend singly come first
    query = torch.randn(1, heads, batch.ids.shape[1], WIDTH)
    masks = Masks(batch.attention, sees, torch.float32)
    found, _ = attend(torch.nn.Module(), query, stored[0], stored[1], masks, scaling=0.3)
    at = 0
    for r, start, stop in (pieces[i] for i in order):
        own = query[0, :, at : at + stop - start]
        k, v = (stored[i, r, :stop].transpose(0, 1).repeat_interleave(groups, 0) for i in range(2))
        seen = sees(0, 0, torch.arange(start, stop)[:, None], torch.arange(stop)[None])
        expected = F.scaled_dot_product_attention(own, k, v, attn_mask=seen, scale=0.3)
        assert torch.allclose(found[0, at : at + stop - start].transpose(0, 1), expected, atol=1e-5)
        at += stop - start


def test_no_mask_is_made_where_all_may_be_seen() -> None:
    step = AttentionMetadata([Span(0, 3, 0, 3, 4), Span(3, 1, 5, 1, 9)], torch.tensor([3, 3, 2, 8]))
    first, second = Masks(step, causal, torch.float32).of(2)
    assert second is None and first is not None and first.shape == (3, 1, 2, 4)
    assert first[2, 0, 0].tolist() == [0, 0, 0, -torch.inf] and not first[:2].any()


def test_what_packed_rows_cannot_have_is_refused() -> None:
    with pytest.raises(ServeError, match="belongs to a running engine"):
        mask(mask_function=causal, dtype=torch.float32)
