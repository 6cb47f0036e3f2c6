"""inference: the mode of a model, batches of like length, and the end of an answer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model

from polyvera.model.inference import by_length, evaluating, until_end


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_evaluation_inside_and_as_before_afterwards(training: bool) -> None:
    model = make_model().train(training)
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        assert not model(torch.tensor([[7, 8]])).logits.requires_grad
    assert model.training is training and torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training is training


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
def test_batches_hold_every_row_once_the_longest_first(batch_size: int) -> None:
    lengths = [3, 9, 1, 9, 4, 7]
    batches = list(by_length(lengths, batch_size))
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(6)) and max(map(len, batches)) <= batch_size
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)


def test_an_answer_ends_before_its_first_end_token() -> None:
    assert until_end([5, 6, 1, 7, 1], frozenset({1})) == [5, 6]
    assert until_end([5, 6], frozenset({1})) == [5, 6]
    assert until_end([2, 6], frozenset({1, 2})) == []
    assert until_end([5, 1], frozenset()) == [5, 1]
