"""Texts of like lengths share a batch, each once, and no batch is larger than it may be."""

import random

import pytest

from polyvera.engine.embedding.request import EncodeRequest, TextRow
from polyvera.engine.embedding.workload import batches, chosen_rows


def rows(lengths: list[int]) -> list[TextRow]:
    request = EncodeRequest([[1] * length for length in lengths], None, "", False)
    return [TextRow(text, i) for i, text in enumerate(request.texts())]


@pytest.mark.parametrize("seed", range(10))
def test_each_row_is_in_one_batch_that_is_small_enough(seed: int) -> None:
    draw = random.Random(seed)
    given, most = rows([draw.randint(1, 60) for _ in range(draw.randint(1, 40))]), draw.choice([1, 64, 200, 10_000])
    found = list(batches(given, most))
    assert sorted(row.index for batch in found for row in batch) == list(range(len(given)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(row.request.num_tokens for row in batch) <= most
    lengths = [row.request.num_tokens for batch in found for row in batch]
    assert lengths == sorted(lengths), "like lengths are together"


def test_a_long_text_is_alone_and_none_are_no_batch() -> None:
    found = [[row.request.num_tokens for row in batch] for batch in batches(rows([9, 2, 2, 2]), 6)]
    assert found == [[2, 2, 2], [9]] and list(batches([], 6)) == []
    even = [[row.request.num_tokens for row in batch] for batch in batches(rows([2, 3, 2, 3]), 9, pads=False)]
    assert even == [[2, 2], [3, 3]]


def test_a_tenant_that_has_little_of_a_step_has_its_oldest_texts_in_it() -> None:
    many, few = rows([4] * 6), rows([9])
    few[0].request.whole.tenant = "other"
    assert chosen_rows([*many, *few], 17) == [*many[:2], *few]
    assert chosen_rows([*many, *few], None) == [*many, *few]
