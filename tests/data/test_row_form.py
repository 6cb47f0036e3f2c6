from collections.abc import Callable

import pytest

from polyvera.data.tables import read
from polyvera.errors import DataError
from polyvera.model.message import Message
from polyvera.model.task import LABEL, MULTI_LABEL, PAIRS, PREFERENCE, REGRESSION, SIMILARITY, TOKEN_LABEL

Write = Callable[..., str]
TEXT = {"text": "x"}


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (["a", "b"], LABEL),
        ([0, 1], LABEL),
        ([True, False], LABEL),
        ([0, "b"], LABEL),
        ([0.5, 1.5], REGRESSION),
        ([1, 2.5], REGRESSION),
        ([["a"], []], MULTI_LABEL),
    ],
)
def test_the_values_of_all_rows_decide_the_task(jsonl: Write, labels: list[object], task: str) -> None:
    assert read(jsonl([{**TEXT, "label": label} for label in labels])).task == task


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", ["b"]], "a text in row 1 and a list in row 2 as label"),
        ([["a"], 0.5], "a list in row 1 and a number in row 2 as label"),
        (["a", 0.5], "a text in row 1 and a number in row 2 as label"),
    ],
)
def test_mixed_values_are_refused(jsonl: Write, labels: list[object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(jsonl([{**TEXT, "label": label} for label in labels]))


def test_a_task_may_be_said(jsonl: Write) -> None:
    whole = jsonl([{**TEXT, "label": i} for i in range(3)])
    assert [e.number for e in read(whole, task=REGRESSION).examples] == [0.0, 1.0, 2.0]
    with pytest.raises(DataError, match="task='regresion' must be one of: lm, .*did you mean 'regression'"):
        read(whole, task="regresion")
    with pytest.raises(DataError, match="fit none of the known forms of task='preference'"):
        read(whole, task=PREFERENCE)


def test_numbers_of_a_csv_are_texts_until_a_task_says_otherwise(jsonl: Write) -> None:
    whole = jsonl([{**TEXT, "label": "2.5"}, {**TEXT, "label": "3"}])
    assert read(whole).task == LABEL
    assert [e.number for e in read(whole, task=REGRESSION).examples] == [2.5, 3.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**TEXT, "label": float("nan")}, "label=nan is not a finite number"),
        ({**TEXT, "label": -1.5e308}, ".*: scale it"),
        ({**TEXT, "label": [1.5]}, "label is of type float, not a string"),
        ({**TEXT, "label": [1, 0, 1]}, "label has a yes or no for each label"),
        ({**TEXT, "label": [True, False]}, "label has a yes or no for each label"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags: each token has one tag"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "tokens must be a list of words"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "tokens must be a list of words"),
        ({"tokens": ["a"], "tags": "O"}, "tags must be a list of labels"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same text"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
    ],
)
def test_a_row_that_says_nothing_is_named(jsonl: Write, row: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=f"row 1: {said}"):
        read(jsonl([row]))


def test_the_names_of_common_formats_are_known(jsonl: Write) -> None:
    tagged = read(jsonl([{"words": ["a", "b"], "ner_tags": ["B-X", "O"]}]))
    assert tagged.task == TOKEN_LABEL and tagged.labels == ("B-X", "O")
    assert tagged.examples[0].words == ("a", "b") and tagged.examples[0].labels == ("B-X", "O")
    assert read(jsonl([{**TEXT, "labels": ["b", "a", "b"]}])).labels == ("a", "b")


def test_preferences_may_be_conversations(jsonl: Write) -> None:
    turn = {"role": "user", "content": "hi"}
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    one = read(jsonl([{"prompt": [turn], **answers}])).examples[0]
    assert (one.prompt, one.answer, one.rejected) == ((Message("user", "hi"),), "chosen", "rejected")
    plain = jsonl([{"prompt": "hi", "chosen": "a", "rejected": "b"}])
    assert read(plain).task == PREFERENCE and read(plain, chat=True).examples[0].prompt == one.prompt


def test_texts_that_belong_together(jsonl: Write) -> None:
    table = read(jsonl([{"anchor": "a", "positive": "b", "negative": "c"}]))
    assert table.task == PAIRS and table.labels == ()
    assert (table.examples[0].prompt, table.examples[0].pair, table.examples[0].rejected) == ("a", "b", "c")
    alike = jsonl([{**TEXT, "text_pair": "y", "label": 2.5}])
    assert read(alike).task == SIMILARITY and read(alike).examples[0].number == 2.5
    assert read(alike, task=REGRESSION).task == REGRESSION
    assert read(jsonl([{**TEXT, "text_pair": "y", "label": i} for i in range(2)])).task == LABEL
    with pytest.raises(DataError, match="fit none of the known forms of task='similarity'"):
        read(jsonl([{**TEXT, "label": 2.5}]), task=SIMILARITY)
