"""A row is checked before it is computed."""

import numpy as np
import pytest

from polyvera.data.encoding import IGNORED
from polyvera.errors import DataError
from polyvera.train.live.datum import Datum


def test_an_encoded_row_predicts_its_target_tokens_alone():
    row = Datum.of_row({"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]}, 0.5)
    assert (row.positions.tolist(), row.targets.tolist()) == ([1, 2], [7, 8])
    assert row.inputs["weights"].tolist() == [0.5, 0.5] and len(row) == 4


def test_a_row_predicts_at_every_position():
    row = Datum.of([5, 6], [6, 7], {"weights": [1, -2]})
    assert (row.positions.tolist(), row.targets.tolist()) == ([0, 1], [6, 7])
    row.check(8, 2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (lambda: Datum.of([], []), "no tokens"),
        (lambda: Datum.of([1, 2], [1]), "shape"),
        (lambda: Datum.of([1, 2], [1, 2], {"weights": [1]}), "weights has shape"),
        (lambda: Datum.of([1], [1], {"weights": [float("nan")]}), "NaN"),
        (lambda: Datum.of_row({"input_ids": [1, 2], "labels": [1, IGNORED]}, 1.0), "no position"),
        (lambda: Datum(np.array([1]), np.array([1]), np.array([1])), "from 0 to 0"),
        (lambda: Datum(np.array([1]), np.array([-1]), np.array([1])), "from 0 to 0"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row, words):
    with pytest.raises(DataError, match=words):
        row()


@pytest.mark.parametrize(
    ("tokens", "targets", "words"),
    [
        ([1, 2, 3], [1, 2, 3], "3 tokens, and the model reads 2"),
        ([9, 1], [1, 1], "tokens: 9"),
        ([1, 1], [1, -1], "targets: -1"),
    ],
)
def test_a_row_that_the_model_cannot_read_is_refused(tokens, targets, words):
    with pytest.raises(DataError, match=words):
        Datum.of(tokens, targets).check(9, 2)
