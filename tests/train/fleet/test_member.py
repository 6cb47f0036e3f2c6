"""A tenant in its slot: its rows in the solo order, its best numbers, and a state that comes back."""

from itertools import chain
from math import inf, nan

import pytest
import torch
from tiny_models import make_model

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.batching import order
from polyvera.data.encoding import IGNORED, Encoded
from polyvera.data.packed_rows import PackedRows
from polyvera.errors import DataError
from polyvera.train.fleet.member import Best, Member
from polyvera.train.fleet.optimizer import SlotAdamW
from polyvera.train.recipe import Recipe


def row(i):
    return {"input_ids": [i, i + 1, i + 2], "labels": [IGNORED, i + 1, i + 2]}


def member(num_rows=7, first=0, **choices):
    recipe = Recipe(model="tiny", data="memory", rank=2, **{"batch_size": 2, "epochs": 2, **choices})
    bank = inject(make_model(), AdapterSpec(rank=2), 2)
    rows = PackedRows.of(Encoded(tuple(row(first + i) for i in range(num_rows))))
    return Member("ann", bank.slots[1], recipe, rows, rows, (), 1, SlotAdamW(bank, recipe))


def test_every_epoch_takes_every_row_once_in_the_solo_order():
    one = member()
    for epoch in range(2):
        taken = []
        for _ in range(one.epoch_steps):
            taken.append([r["input_ids"][0] for r in one.next_rows()])
            one.advance(1.0)
        assert list(chain(*taken)) == order(7, one.recipe.run_seed, epoch, None, 2)
        assert [len(step) for step in taken] == [2, 2, 2, 1]
    assert one.is_done and one.step == one.total == 8


def test_patience_ends_it_early():
    one = member(validation=0.5, early_stopping=2)
    one.advance(1.0)
    for loss, done in ((3.0, False), (2.0, False), (2.0, False), (2.5, True)):
        one.best.take(loss, lambda: torch.ones(1))
        assert one.is_done == done


def test_the_best_numbers_are_copied_where_the_loss_was_lowest():
    best, calls = Best(), []
    for loss in (3.0, 1.0, 2.0, nan):
        best.take(loss, lambda loss=loss: calls.append(loss) or torch.tensor([loss]))
    assert calls == [3.0, 1.0] and (best.loss, best.since) == (1.0, 2) and best.numbers == torch.tensor([1.0])


@pytest.mark.parametrize(("loss", "norm", "told"), [(nan, 1.0, "loss"), (1.0, inf, "gradient"), (1.0, 1.0, "")])
def test_a_step_that_cannot_be_made_says_why(loss, norm, told):
    found = member().problem(loss, norm)
    assert told in found and bool(found) == bool(told) and (not told or "step 1" in found)


def test_its_state_comes_back_and_only_for_the_same_rows():
    one, other = member(), member()
    for loss in (3.0, 2.0):
        one.optimizer.grads.normal_()
        one.optimizer.step([1], [1.0], [1.0])
        one.advance(loss)
    one.eval_losses.append((2, 1.5))
    one.best.take(1.5, lambda: torch.arange(3.0))
    other.restore(one.state())
    assert (other.step, other.losses, other.eval_losses) == (2, [3.0, 2.0], [(2, 1.5)])
    assert other.best.loss == 1.5 and torch.equal(other.best.numbers, torch.arange(3.0))
    assert other.next_rows() == one.next_rows() and other.optimizer.steps == one.optimizer.steps
    with pytest.raises(DataError, match="ann"):
        member(first=1).restore(one.state())
