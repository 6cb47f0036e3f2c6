from dataclasses import replace

import pytest
import torch
from tiny_models import make_classifier, make_model

from polyvera.adapter.inject import extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.answer import OF_TEXT, Meaning, meaning_of, task_of_config, trained_meaning
from polyvera.model.task import LABEL, LM, MULTI_LABEL, REGRESSION, TOKEN_LABEL

LOGITS = torch.tensor([0.0, 2.0, -3.0, 9.0])  # the last is of another adapter's head


@pytest.mark.parametrize(
    ("meaning", "scores", "answer"),
    [
        (Meaning(LABEL, ("a", "b", "c")), torch.softmax(LOGITS[:3], -1), "b"),
        (Meaning(MULTI_LABEL, ("a", "b", "c")), torch.sigmoid(LOGITS[:3]), ("a", "b")),
        (Meaning(MULTI_LABEL, ("a", "b", "c"), 0.8), torch.sigmoid(LOGITS[:3]), ("b",)),
        (Meaning(REGRESSION, ("score",)), LOGITS[:1], 0.0),
    ],
)
def test_outputs_are_read_as_their_task_has_it(meaning: Meaning, scores: torch.Tensor, answer: object) -> None:
    found = meaning.scores(LOGITS)
    torch.testing.assert_close(found, scores)
    assert meaning.answer(found) == answer


def test_words_have_a_tag_each() -> None:
    meaning = Meaning(TOKEN_LABEL, ("O", "B-PER"))
    assert meaning.answer(meaning.scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))) == ("O", "B-PER")


def test_an_adapter_says_what_it_is_for() -> None:
    model = make_model()
    bank = inject(model, AdapterSpec(rank=2))
    adapter = extract(bank, bank.first, model)
    assert meaning_of(adapter) == OF_TEXT and OF_TEXT.task == LM
    assert meaning_of(replace(adapter, labels=("a", "b"))) == Meaning(LABEL, ("a", "b"))
    assert meaning_of(replace(adapter, labels=("a",), task=REGRESSION)).task == REGRESSION


@pytest.mark.parametrize(
    ("problem", "task"),
    [(None, LABEL), ("regression", REGRESSION), ("multi_label_classification", MULTI_LABEL)],
)
def test_a_checkpoints_own_head_says_what_it_is_for(problem: str | None, task: str) -> None:
    model = make_classifier()
    assert trained_meaning(model).labels == ()  # a head that was never saved
    model.config.problem_type, model.config.architectures = problem, [type(model).__name__]
    assert task_of_config(model.config) == task
    assert trained_meaning(model) == Meaning(task, ("LABEL_0", "LABEL_1"))
