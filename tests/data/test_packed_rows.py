import pytest

from polyvera.data.encoding import IGNORED, Encoded, encode
from polyvera.data.packed_rows import PackedRows
from polyvera.data.tables import read


def test_rows_come_back_as_they_were(counting, tokenizer):
    rows = encode(read(counting), tokenizer, 64)
    packed = PackedRows.of(rows)
    assert list(packed) == list(rows.rows)
    assert packed.lengths == rows.lengths and len(packed) == len(rows) and packed.sha256 == rows.sha256


def test_classes_come_back_as_they_were(classes, tokenizer):
    rows = encode(read(classes), tokenizer, 64)
    assert list(PackedRows.of(rows)) == list(rows.rows)


@pytest.mark.parametrize("size", [255, 256, 49_151, 65_535, 65_536, 200_000])
def test_tokens_of_any_vocabulary(size):
    rows = Encoded(tuple({"input_ids": [i, size, 0], "labels": [IGNORED, size, 0]} for i in range(5)))
    packed = PackedRows.of(rows)
    assert list(packed) == list(rows.rows)
    assert packed.columns["input_ids"].itemsize == (1 if size < 256 else 2 if size < 65_536 else 4)


def test_they_take_two_bytes_a_token_in_a_vocabulary_like_smollm2_s():
    rows = Encoded(tuple({"input_ids": [49_000] * 75, "labels": [IGNORED] * 70 + [49_000] * 5} for _ in range(300)))
    assert PackedRows.of(rows).num_bytes < 2.3 * 300 * 75


def test_bits_that_begin_within_a_byte():
    labels = [[7] * (n // 2) + [IGNORED] * (n - n // 2) for n in range(1, 20)]
    rows = Encoded(tuple({"input_ids": [7] * len(row), "labels": row} for row in labels))
    assert list(PackedRows.of(rows)) == list(rows.rows)


def test_answers_of_their_own_lengths_come_back_as_they_were():
    answers = [[7, 1], [8, 9, 300, 1], [1]]
    rows = Encoded(tuple({"input_ids": [5] * (i + 2), "labels": answer} for i, answer in enumerate(answers)))
    packed = PackedRows.of(rows)
    assert list(packed) == list(rows.rows) and packed.lengths == [2, 3, 4]
    assert packed.own_ends["input_ids"] is packed.ends and packed.own_ends["labels"] is not packed.ends


def test_answers_as_long_as_their_prompts_come_back_as_they_were():
    rows = Encoded(tuple({"input_ids": [5] * (i + 2), "labels": [6] * (i + 2)} for i in range(3)))
    assert list(PackedRows.of(rows)) == list(rows.rows)
