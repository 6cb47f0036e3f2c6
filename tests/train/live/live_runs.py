"""A live trainer over a tiny model, and runs that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.load import Base
from polyvera.train.live.datum import Datum
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.operation import OptimizerStep, Pass, TakeState
from polyvera.train.live.run_state import RunState

STEP = OptimizerStep(0.02, max_norm=1.0)


@contextmanager
def live(method: str = AdapterSpec().method, num_slots: int = 3, **choices: Any) -> Iterator[LiveTrainer]:
    base = Base(make_model(), make_tokenizer())
    bank = inject(base.model, AdapterSpec(method, rank=4, targets="all-linear"), num_slots)
    yield LiveTrainer(base, bank, **{"batch_tokens": 60, **choices})
    eject(base.model)


def rows_of(seed: int, num_rows: int = 3) -> tuple[Datum, ...]:
    """Rows of varying length, drawn for one run."""
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(num_rows):
        ids = draw.randint(7, 47, draw.randint(4, 20)).tolist()
        found.append(Datum.of(ids[:-1], ids[1:], {"weights": [1 / len(ids)] * (len(ids) - 1)}))
    return tuple(found)


def step_of(method: str) -> OptimizerStep:
    """A step that moves a method's numbers far, and not so far that its roundings grow from step to step."""
    return replace(STEP, learning_rate=min(0.01, 10 * METHODS[method].lr))


def train_steps(
    trainer: LiveTrainer, names: Sequence[str], num_steps: int, step: OptimizerStep = STEP
) -> list[list[float]]:
    """So many steps of each run, whose rows are named by the last letter of its name; the losses of each."""
    futures = []
    for number in range(num_steps):
        for name in names:
            futures.append(trainer.submit(name, Pass(rows_of(100 * int(name[-1]) + number))))
            trainer.submit(name, step)
    run_all(trainer)
    losses = [future.result(0).loss for future in futures]
    return [losses[i :: len(names)] for i in range(len(names))]


def run_all(trainer: LiveTrainer) -> int:
    """Rounds until nobody waits; how many."""
    count = 0
    while trainer.round():
        count += 1
    return count


def state_of(trainer: LiveTrainer, name: str) -> RunState:
    future = trainer.submit(name, TakeState())
    run_all(trainer)
    state = future.result(0)
    assert isinstance(state, RunState)
    return state


def alone(method: str, name: str, num_steps: int, step: OptimizerStep = STEP) -> RunState:
    """The state after the same calls in a trainer of its own."""
    with live(method, 1) as trainer:
        trainer.open(name)
        train_steps(trainer, [name], num_steps, step)
        return state_of(trainer, name)


def apart(one: RunState, other: RunState) -> float:
    """The relative difference of the numbers."""
    return float((one.weight - other.weight).norm() / other.weight.norm())


def no_files(folder: Path) -> bool:
    return not list(folder.glob("*"))


__all__ = ["Adapter", "alone", "apart", "live", "no_files", "rows_of", "run_all", "state_of", "step_of", "train_steps"]
