"""The table of what a run may call: what each call asks of the trainer, and what its tenant is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from polyvera.errors import DataError
from polyvera.jobs import training_run as kinds
from polyvera.jobs.operation_queue import RunAnswer
from polyvera.jobs.pass_rows import logprobs_to_bytes, rows_from_bytes
from polyvera.jobs.training_run import RunOperation, TrainingRun
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.live import operation as live
from polyvera.train.live.datum import Datum
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.run_state import RunState
from polyvera.train.live.token_loss import Objective
from polyvera.train.live.weights_saver import WeightsSaver


@dataclass(frozen=True, slots=True)
class CalledRun:
    """What a call is made with. rows: the bytes of a pass, asked for once."""

    run: TrainingRun
    trainer: LiveTrainer
    saver: WeightsSaver
    asked: RunOperation
    rows: Callable[[], bytes] = field(default=bytes)

    def answer(self, answer: dict[str, Any], logprobs: bytes | None = None, num_tokens: int = 0) -> RunAnswer:
        """An answer to this call."""
        return RunAnswer(self.run.id, self.asked.seq, answer, logprobs, num_tokens=num_tokens)


@dataclass(frozen=True, slots=True)
class RunCall:
    """A row of the table. ask: what the trainer is to do. answer: made of what that gave."""

    ask: Callable[[CalledRun], live.Operation]
    answer: Callable[[CalledRun, live.Operation, live.Result], RunAnswer]
    is_read: bool = False  # whether it changes nothing in the trainer
    is_alone: bool = False  # whether all calls before it are to be done first


def _pass(call: CalledRun) -> live.Operation:
    asked = call.asked.request
    rows = tuple(
        Datum(row.tokens.astype(np.int64), row.positions, row.targets, row.inputs)
        for row in rows_from_bytes(call.rows())
    )
    objective = Objective(asked["loss_fn"], tuple(sorted(asked["loss_fn_config"].items())))
    unused = next((name for row in rows for name in row.inputs if name not in objective.row.inputs), None)
    if unused is not None:
        known = ", ".join(objective.row.inputs)
        raise DataError(f"{objective.name} takes target_tokens, {known}, and not {unused!r}: leave it out")
    return live.Pass(rows, objective, backward=call.asked.kind == kinds.FORWARD_BACKWARD)


def _passed(call: CalledRun, asked: live.Operation, result: live.Result) -> RunAnswer:
    found, rows = cast(live.PassResult, result), cast(live.Pass, asked).rows
    widths = [len(row.positions) // len(row) for row in rows]
    num_tokens = sum(map(len, rows)) if cast(live.Pass, asked).backward else 0
    return call.answer({"loss": found.loss}, logprobs_to_bytes(found.logprobs, widths), num_tokens)


def _step(call: CalledRun) -> live.Operation:
    given = call.asked.request
    names = ("beta1", "beta2", "eps", "weight_decay")
    most = given["grad_clip_norm"]
    settings = AdamSettings(**{name: given[name] for name in names})
    return live.OptimizerStep(given["learning_rate"], settings, most if most > 0 else None)


def _stepped(call: CalledRun, asked: live.Operation, result: live.Result) -> RunAnswer:
    made = cast(live.StepResult, result)
    return call.answer({"metrics": {"step": float(made.step), "grad_norm": made.norm}})


def _take(call: CalledRun) -> live.Operation:
    return live.TakeState()


def _saved(call: CalledRun, asked: live.Operation, result: live.Result) -> RunAnswer:
    made = call.saver.save(call.run, call.asked.seq, call.asked.request, cast(RunState, result))
    return call.answer({"path": made.path})


def _published(call: CalledRun, asked: live.Operation, result: live.Result) -> RunAnswer:
    state = cast(RunState, result)
    made, sampler = call.saver.publish(call.run, call.asked.seq, call.asked.request, state, call.trainer)
    path = {"path": made.path} if made.is_named else {}
    return call.answer({**path, **({} if sampler is None else {"sampling_session_id": sampler})})


def _load(call: CalledRun) -> live.Operation:
    asked = call.asked.request
    return live.SetState(call.saver.load(call.run, asked["path"]), with_moments=asked["optimizer"])


def _loaded(call: CalledRun, asked: live.Operation, result: live.Result) -> RunAnswer:
    return call.answer({"path": call.asked.request["path"], "model_id": call.run.id})


RUN_CALLS: Mapping[str, RunCall] = MappingProxyType(
    {
        kinds.FORWARD: RunCall(_pass, _passed, is_read=True),
        kinds.FORWARD_BACKWARD: RunCall(_pass, _passed),
        kinds.OPTIMIZER_STEP: RunCall(_step, _stepped),
        kinds.SAVE: RunCall(_take, _saved, is_read=True),
        kinds.SAVE_FOR_SAMPLER: RunCall(_take, _published, is_read=True),
        kinds.LOAD: RunCall(_load, _loaded, is_alone=True),
    }
)
