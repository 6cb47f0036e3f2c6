"""Each call asks the trainer for what it says, and its answer has what that gave."""

import numpy as np
import pytest
from live_runs import rows_of

from polyvera.errors import DataError
from polyvera.jobs import training_run as kinds
from polyvera.jobs.pass_rows import PassRow, logprobs_from_bytes, rows_to_bytes
from polyvera.jobs.training_run import RunOperation
from polyvera.train.live.operation import OptimizerStep, PassResult, StepResult, TakeState
from polyvera.train.live.run_calls import RUN_CALLS, CalledRun


class Named:
    id = "run"


def call(kind, request, rows=b""):
    return CalledRun(Named(), None, None, RunOperation("run", 3, kind, request), lambda: rows)


def test_a_pass_is_of_its_rows_and_its_loss():
    rows = [PassRow(row.tokens, row.targets, row.inputs) for row in rows_of(1, 2)]
    asked = call(kinds.FORWARD, {"loss_fn": "cross_entropy", "loss_fn_config": {}}, rows_to_bytes(rows))
    made = RUN_CALLS[kinds.FORWARD].ask(asked)
    assert not made.backward and [len(row) for row in made.rows] == [len(row.tokens) for row in rows]
    logprobs = tuple(np.zeros(len(row), np.float32) for row in made.rows)
    answer = RUN_CALLS[kinds.FORWARD].answer(asked, made, PassResult(2.0, logprobs))
    assert answer.answer == {"loss": 2.0} and answer.num_tokens == 0
    assert [len(one) for one in logprobs_from_bytes(answer.logprobs)] == [len(row) for row in made.rows]
    with pytest.raises(DataError, match="and not 'weights': leave it out"):
        RUN_CALLS[kinds.FORWARD].ask(call(kinds.FORWARD, {"loss_fn": "ppo", "loss_fn_config": {}}, rows_to_bytes(rows)))
    with pytest.raises(DataError, match="must be one of"):
        RUN_CALLS[kinds.FORWARD].ask(call(kinds.FORWARD, {"loss_fn": "x", "loss_fn_config": {}}, rows_to_bytes(rows)))


def test_a_step_clips_where_it_is_asked_to():
    adam = {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.5}
    row = RUN_CALLS[kinds.OPTIMIZER_STEP]
    made = row.ask(call(kinds.OPTIMIZER_STEP, adam | {"grad_clip_norm": 0.0}))
    assert isinstance(made, OptimizerStep) and made.max_norm is None and made.settings.beta1 == 0.8
    assert row.ask(call(kinds.OPTIMIZER_STEP, adam | {"grad_clip_norm": 2.0})).max_norm == 2.0
    answer = row.answer(call(kinds.OPTIMIZER_STEP, adam), made, StepResult(4, 0.5))
    assert answer.answer == {"metrics": {"step": 4.0, "grad_norm": 0.5}} and answer.seq == 3


def test_what_is_saved_asks_for_the_state():
    for kind in (kinds.SAVE, kinds.SAVE_FOR_SAMPLER):
        assert RUN_CALLS[kind].ask(call(kind, {})) == TakeState() and RUN_CALLS[kind].is_read
