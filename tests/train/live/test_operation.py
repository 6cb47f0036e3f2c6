"""What a run asks for is checked when it is asked."""

import pytest

from polyvera.errors import DataError
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.live.datum import Datum
from polyvera.train.live.operation import OptimizerStep, Pass
from polyvera.train.live.token_loss import Objective


def test_a_pass_needs_rows_and_what_its_loss_needs():
    row = Datum.of([1, 2], [2, 3], {"weights": [1, 1]})
    assert Pass((row,)).backward
    with pytest.raises(DataError, match="no rows"):
        Pass(())
    with pytest.raises(DataError, match="the base is not trained"):
        Pass((row,), is_base=True)
    with pytest.raises(DataError, match="lacks logprobs"):
        Pass((row,), Objective("ppo"))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda: OptimizerStep(-1.0), "learning_rate=-1.0"),
        (lambda: OptimizerStep(float("nan")), "learning_rate=nan"),
        (lambda: OptimizerStep(float("inf")), "learning_rate=inf"),
        (lambda: OptimizerStep(0.1, AdamSettings(beta1=1.0)), "beta1=1.0 must be a number from 0 up, and less than 1"),
        (lambda: OptimizerStep(0.1, AdamSettings(eps=-1e-9)), "eps"),
        (lambda: OptimizerStep(0.1, AdamSettings(weight_decay=-1.0)), "weight_decay"),
        (lambda: OptimizerStep(0.1, max_norm=0.0), "max_norm=0.0"),
    ],
)
def test_a_step_that_cannot_be_is_refused(step, words):
    OptimizerStep(0.0, AdamSettings(0.0, 0.0, 0.0, 0.0), 1.0)
    with pytest.raises(DataError, match=words):
        step()
