import pytest
import torch
from tiny_models import WORDS, make_model, make_seq2seq, make_tokenizer

from polyvera.data.batching import Collator, EpochOrder, order, padded
from polyvera.data.encoding import IGNORED

EOS = WORDS.index("</s>")


def test_rows_are_padded_on_either_side() -> None:
    assert padded([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert padded([[1, 2], [3]], 9, left=True).tolist() == [[1, 2], [9, 3]]


def test_an_end_token_that_is_also_the_pad_token_stays_learnt() -> None:
    rows = [{"input_ids": [5, 6, EOS], "labels": [IGNORED, 6, EOS]}, {"input_ids": [7, EOS], "labels": [7, EOS]}]
    batch = Collator(EOS)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, EOS], [7, EOS, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, EOS], [7, EOS, IGNORED]]


def test_classes_stay_one_number_a_row() -> None:
    batch = Collator(EOS)([{"input_ids": [5], "labels": 1}, {"input_ids": [5, 6], "labels": 0}])
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))


@pytest.mark.parametrize("lengths", [None, [i % 13 for i in range(100)]])
def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(lengths: list[int] | None) -> None:
    orders = [order(100, seed, epoch, lengths, 4) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(rows) == list(range(100)) for rows in orders)
    assert len({tuple(rows) for rows in orders}) == 4
    assert orders[0] == order(100, 0, 0, lengths, 4)


def test_rows_of_like_length_come_together() -> None:
    lengths = [i % 13 for i in range(100)]
    rows = order(100, 0, 0, lengths, 4)
    spread = [
        max(lengths[i] for i in rows[k : k + 4]) - min(lengths[i] for i in rows[k : k + 4]) for k in range(0, 100, 4)
    ]
    assert max(spread) <= 1


def test_the_sampler_follows_its_epoch() -> None:
    sampler = EpochOrder(10, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == order(10, 5, 1) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_reads_what_its_family_makes_of_the_answers(family):
    model = make_seq2seq(family)
    batch = Collator.of(model, make_tokenizer())(
        [{"input_ids": [5], "labels": [8, 1]}, {"input_ids": [5, 6], "labels": [9]}]
    )
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    assert batch["decoder_input_ids"].tolist() == [[start, 8], [start, 9]]
    assert batch["labels"].tolist() == [[8, 1], [9, IGNORED]]
    assert batch["input_ids"].tolist() == [[5, pad], [5, 6]]


def test_a_model_without_a_decoder_gets_no_inputs_for_it():
    assert Collator.of(make_model(), make_tokenizer()).decoder_inputs is None
