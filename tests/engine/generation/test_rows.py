"""Which tokens a step computes."""

import numpy as np
import pytest
from tiny_serve import make_tokenizer

from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.kv_cache import Prefix
from polyvera.engine.generation.request import GREEDY, Request
from polyvera.engine.generation.rows import LEAST, Row, first_copies, next_chunks
from polyvera.engine.generation.sampler import RequestSampler

TOKENIZER = make_tokenizer()


def running(*lengths: int) -> list[Row]:
    """Rows with prompts of such lengths, the oldest first."""
    asked = [Request(list(range(num)), None, GREEDY, lambda output: None) for num in lengths]
    sampler = RequestSampler(GREEDY, [0], frozenset())
    return [Row(one, i, 1, sampler, Detokenizer(TOKENIZER)) for i, one in enumerate(asked)]


def test_rows_that_decode_go_first_and_prompts_share_what_a_step_reads() -> None:
    old, decoding, young = rows = running(7, 4, 9)
    decoding.num_computed, decoding.request.answer[:] = 4, [9]
    first, reading = next_chunks(rows, 10)
    assert [(c.row, c.start, c.stop, c.is_last) for c in first] == [(decoding, 4, 5, True)]
    assert [(c.row, c.start, c.stop, c.is_last) for c in reading] == [(old, 0, 7, True), (young, 0, 3, False)]


def test_the_oldest_prompts_are_read_first_wherever_they_are() -> None:
    first, second = running(5, 5)
    _, reading = next_chunks([second, first], 7)
    assert [(c.row, c.stop) for c in reading] == [(first, 5), (second, 2)]


def test_a_tenants_long_prompts_leave_others_their_share() -> None:
    long, longer, short = rows = running(900, 900, 20)
    short.request.tenant = "other"
    _, reading = next_chunks(rows, 100)
    assert [(c.row, c.stop) for c in reading] == [(long, 80), (short, 20)]
    long.request.weight = longer.request.weight = 9.0
    _, reading = next_chunks(rows, 100)
    assert [(c.row, c.stop) for c in reading] == [(long, 90), (short, 10)]


def test_rows_take_turns_where_a_step_has_little_room() -> None:
    rows = running(*[4] * 7, 90, 40)
    for row in rows[:7]:
        row.num_computed, row.request.answer[:] = 4, [9]
    rows[6].request.tenant = rows[8].request.tenant = "other"
    seen = []
    for step in range(1, 5):
        decoding, reading = next_chunks(rows, 100, 4)
        assert [(chunk.row.index, chunk.stop) for chunk in reading] == [(7, LEAST), (8, 40)]
        for chunk in decoding:
            chunk.row.last_step = step
        seen.append([chunk.row.index for chunk in decoding])
    assert seen == [[0, 1, 2, 6], [3, 4, 5, 6]] * 2
    assert [chunk.stop for chunk in next_chunks(rows, 200, 77)[1]] == [77 - 7 - 40, 40]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_token_is_computed_once_and_in_order(chunk: int) -> None:
    rows = running(1, 8, 5)
    seen: list[list[int]] = [[] for _ in rows]
    for _ in range(100):
        decoding, reading = next_chunks(rows, chunk)
        assert sum(piece.stop - piece.start for piece in reading) <= chunk
        for piece in (*decoding, *reading):
            seen[piece.row.index] += range(piece.start, piece.stop)
            piece.row.num_computed = piece.stop
        if all(row.num_left == 0 for row in rows):
            break
    assert seen == [list(range(len(row.request.prompt))) for row in rows]


def test_a_row_gives_its_prompt_and_then_its_answer() -> None:
    (row,) = running(4)
    row.request.answer[:] = [90, 91, 92]
    assert row.tokens(0, 4) == [0, 1, 2, 3] and row.tokens(2, 6) == [2, 3, 90, 91]
    assert row.tokens(5, 7) == [91, 92] and row.tokens(0, 0) == [] and row.num_left == 7


def test_a_row_whose_prefix_is_copied_computes_nothing_and_each_tenants_oldest_is_copied() -> None:
    old, young, other, done = rows = running(9, 9, 9, 9)
    other.request.tenant = "other"
    for row in (old, young, other):
        row.prefix = Prefix(np.arange(8), [])
    assert first_copies([young, other, old, done]) == [old, other]
    assert [chunk.row for chunk in next_chunks(rows, 100)[1]] == [done]
