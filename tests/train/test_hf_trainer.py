"""The recipe in the Trainer's words, and the loss of classes over accumulated batches."""

import pytest
import torch
from torch.nn import functional as F

from polyvera.train.hf_trainer import arguments, columns_of, step_loss
from polyvera.train.recipe import Recipe


def recipe(**choices):
    return Recipe(model="tiny", data="memory", **choices)


def test_every_choice_reaches_the_trainer(tmp_path):
    given = arguments(recipe(batch_size=3, accumulate=2, max_steps=7, lr=0.5, clip=0.25, run_seed=9), tmp_path, 100)
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps, given.max_steps) == (3, 2, 7)
    assert (given.learning_rate, given.max_grad_norm, given.seed) == (0.5, 0.25, 9)
    assert given.eval_strategy == given.save_strategy == "no"


def test_epochs_are_steps_of_the_rows(tmp_path):
    given = arguments(recipe(batch_size=3, accumulate=2, epochs=2, validation=0.5, output="run"), tmp_path, 20)
    epoch = -(-20 // 6)
    assert given.max_steps == 2 * epoch and given.eval_steps == given.save_steps == epoch
    often = arguments(recipe(max_steps=2, validation=0.5, output="run", save_every=1), tmp_path, 1000)
    assert (often.eval_steps, often.save_steps) == (2, 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulated_batches_have_the_loss_of_the_whole(size):
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 3, generator=draw), torch.tensor([0, 2, 1, 1])
    parts = zip(logits.split(size), labels.split(size), strict=True)
    found = sum(step_loss(F.cross_entropy(x, y, reduction="none"), y, num_items_in_batch=4) for x, y in parts)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))
    torch.testing.assert_close(step_loss(F.cross_entropy(logits, labels, reduction="none"), labels), found)


def test_a_column_of_the_history_has_the_records_that_hold_it():
    history = [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.25}, {"step": 2, "loss": 0.125}]
    assert columns_of(history, "loss") == ((1, 0.5), (2, 0.125))
    assert columns_of(history, "eval_loss") == ((2, 0.25),) and columns_of(history, "lr") == ()
