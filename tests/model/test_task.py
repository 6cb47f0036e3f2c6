import pytest

from polyvera.data.encoding import ENCODERS
from polyvera.data.row_form import FORMS
from polyvera.evaluate.embedded import VECTOR_ANSWERS
from polyvera.evaluate.metrics import METRICS
from polyvera.model.answer import ANSWERS
from polyvera.model.shapes import KINDS
from polyvera.model.task import EACH_TOKEN, LM, NEXT_TOKEN, TASKS, WHOLE_ROW, task_named
from polyvera.server.classification import SAYS
from polyvera.train.loss import LOSSES
from polyvera.train.preference_loss import COMPARISONS
from polyvera.train.vector_loss import VECTOR_LOSSES


@pytest.mark.parametrize("name", TASKS)
def test_every_word_of_a_row_is_a_key_of_its_table(name: str) -> None:
    row = TASKS[name]
    assert row.kind in KINDS and row.encoding in ENCODERS
    assert row.loss in (VECTOR_LOSSES if row.embeds else LOSSES)
    assert row.predicts in (NEXT_TOKEN, EACH_TOKEN, WHOLE_ROW)
    assert {row.answer} <= {*(VECTOR_ANSWERS if row.embeds else ANSWERS), ""} and set(row.metrics) <= set(METRICS)
    assert {row.compares} <= {*COMPARISONS, ""}
    assert [row.has_head, bool(row.compares), row.writes, row.embeds].count(True) == 1


def test_every_word_of_the_other_tables_is_used() -> None:
    assert {row.encoding for row in TASKS.values()} == set(ENCODERS)
    assert {row.loss for row in TASKS.values()} == {*LOSSES, *VECTOR_LOSSES}
    assert {row.answer for row in TASKS.values()} - {""} == {*ANSWERS, *VECTOR_ANSWERS}
    assert set(ANSWERS) == set(SAYS)
    assert {metric for row in TASKS.values() for metric in row.metrics} == set(METRICS)
    assert {form.task for form in FORMS.values()} == set(TASKS)


def test_no_name_is_text() -> None:
    assert task_named("") is TASKS[LM]
