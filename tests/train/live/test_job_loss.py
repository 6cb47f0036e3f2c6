"""A job's passes have the loss and the gradient that their rows say."""

import numpy as np
import pytest

from polyvera.data.encoding import IGNORED
from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED
from polyvera.train.live.job_loss import JOB_LOSSES
from polyvera.train.live.operation import PassResult

TEXT = {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}
PAIR = {"input_ids": [1, 2, 1, 3, 4], "labels": [IGNORED, 2, IGNORED, 3, 4], "parts": [2, 3]}


def test_texts_have_the_mean_over_their_targets():
    loss = JOB_LOSSES[SUPERVISED]
    made = loss.trained([TEXT, TEXT], [], 0.1)
    assert loss.before([TEXT]) == () and made.loss is None
    assert [row.inputs["weights"].tolist() for row in made.asked.rows] == [[0.25, 0.25]] * 2


def test_preferences_have_dpos_loss_and_its_derivative():
    own, base = JOB_LOSSES[DPO].before([PAIR, PAIR])
    assert base.is_base and not own.backward and [row.tokens.tolist() for row in own.rows[:2]] == [[1, 2], [1, 3, 4]]
    numbers = np.asarray([-1.0, -2.0, -1.5, -0.5])  # of the answers, the base's are zero

    def result(values):
        return PassResult(0.0, tuple(np.asarray([v / n] * n, np.float32) for v, n in zip(values, (1, 2, 1, 2))))

    def loss_of(values):
        margins = 0.5 * (values[::2] - values[1::2])
        return float(np.log1p(np.exp(-margins)).mean())

    made = JOB_LOSSES[DPO].trained([PAIR, PAIR], [result(numbers), result(np.zeros(4))], 0.5)
    assert made.loss == pytest.approx(loss_of(numbers), rel=1e-6)
    for i, row in enumerate(made.asked.rows):
        moved = numbers.copy()
        moved[i] += 1e-5
        slope = (loss_of(moved) - loss_of(numbers)) / 1e-5
        assert row.inputs["weights"][0] == pytest.approx(-slope, rel=1e-3)  # a cross-entropy is -weight * p
