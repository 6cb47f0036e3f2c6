"""The tokens of one step lie side by side, and each knows its place."""

import pytest
import torch
from tiny_serve import make_tokenizer

from polyvera.engine.generation.attention import Span
from polyvera.engine.generation.batch import make_batch
from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.request import GREEDY, Request
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.generation.sampler import RequestSampler

TOKENIZER, CONTEXT, CPU = make_tokenizer(), 40, torch.device("cpu")


def row(index: int, length: int, computed: int, slot: int = 0) -> Row:
    asked = Request([100 * index + i for i in range(length)], None, GREEDY, lambda output: None)
    return Row(asked, index, slot, RequestSampler(GREEDY, asked.prompt, frozenset()), Detokenizer(TOKENIZER), computed)


def test_a_batch_is_rows_that_decode_and_then_pieces_of_prompts() -> None:
    a, b, c = row(0, 5, 4, slot=3), row(1, 6, 5), row(3, 9, 2, slot=8)
    b.request.answer[:] = []
    batch = make_batch([Chunk(a, 4, 5), Chunk(b, 5, 6)], [Chunk(c, 2, 6)], CONTEXT, CPU)
    assert batch.ids.tolist() == [[4, 105, 302, 303, 304, 305]]
    assert batch.positions.tolist() == [[4, 5, 2, 3, 4, 5]]
    assert batch.slot_mapping.tolist() == [4, CONTEXT + 5, *range(3 * CONTEXT + 2, 3 * CONTEXT + 6)]
    assert batch.slots == (3, 0, 8, 8, 8, 8) and batch.rows == (a, b) and batch.last.tolist() == [0, 1]
    assert list(batch.attention.spans) == [Span(0, 2, 0, 2, 6), Span(2, 4, 3, 1, 6)] and not batch.is_decoding
    whole = make_batch([], [Chunk(c, 2, 9)], CONTEXT, CPU)
    assert whole.rows == (c,) and whole.last.tolist() == [6]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_piece_that_is_not_the_last_chooses_no_token(size: int) -> None:
    read = row(2, 9, 1)
    batch = make_batch([], [Chunk(read, 1, 1 + size)], CONTEXT, CPU)
    assert batch.rows == () and len(batch.last) == 0 and batch.ids.tolist() == [[200 + 1 + i for i in range(size)]]


def test_rows_that_decode_alone_are_told_apart_from_prompts() -> None:
    one = row(0, 5, 4)
    assert make_batch([Chunk(one, 4, 5)], [], CONTEXT, CPU).is_decoding
    assert not make_batch([], [Chunk(row(1, 3, 0), 0, 3)], CONTEXT, CPU).is_decoding
