"""The rows of each step are those of an epoch's order, each once an epoch."""

from tiny_models import counting_rows, make_tokenizer

from polyvera.data.batching import order
from polyvera.data.encoding import encode
from polyvera.data.packed_rows import PackedRows
from polyvera.data.tables import table
from polyvera.train.fleet.step_rows import StepRows
from polyvera.train.recipe import Recipe

ROWS = PackedRows.of(encode(table("rows", enumerate(counting_rows(7), 1)), make_tokenizer(), 60))


def steps(**choices):
    return StepRows(Recipe(model="tiny", data="memory", batch_size=2, run_seed=3, **choices), ROWS)


def test_an_epoch_takes_every_row_once_in_its_order():
    own = steps(epochs=2)
    assert (own.epoch_steps, own.total) == (4, 8)
    for epoch in range(2):
        taken = [row for step in range(4) for row in own.of(4 * epoch + step)]
        assert taken == [ROWS[i] for i in order(7, 3, epoch)]
    assert own.of(2) == own.of(2) != own.of(6)


def test_the_tokens_of_the_steps_add_up():
    own = steps(max_steps=6)
    sums = [own.tokens_until(step) for step in range(7)]
    each = [sum(len(row["input_ids"]) for row in own.of(step)) for step in range(6)]
    assert sums == [sum(each[:i]) for i in range(7)]
    assert steps(epochs=2).tokens_until(8) == 2 * sum(ROWS.lengths)


def test_rows_of_like_length_stand_together():
    taken = [len(row["input_ids"]) for step in range(4) for row in steps(epochs=1, group_by_length=True).of(step)]
    assert taken == sorted(taken, reverse=True)
