"""JobRun: one fine-tuning job as a run of the live trainer, from its first step, or its last save, to its end."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from polyvera.data.packed_rows import PackedRows
from polyvera.errors import RecipeError
from polyvera.jobs.fine_tuning_job import SUPERVISED
from polyvera.train import checkpoint
from polyvera.train.fleet.adamw import AdamSettings
from polyvera.train.fleet.step_rows import StepRows
from polyvera.train.live.job_loss import DEFAULT_BETA, JOB_LOSSES, EncodedRows, WeightedPass
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.operation import OptimizerStep, PassResult, Result, TakeState
from polyvera.train.live.run_state import RunState
from polyvera.train.recipe import Recipe
from polyvera.train.trained_numbers import NUM_COMPARED, check_rows, is_open

RECENT = 10
ROWS = "rows"
Futures = Sequence[Future[Result]]


@dataclass(frozen=True, slots=True, eq=False)
class EpochEnd:
    """What a job has at the end of an epoch: its state, and the mean loss of the validation rows, None without any."""

    epoch: int
    step: int
    state: RunState
    valid_loss: float | None


class JobRun:
    """A job that trains.

    id: of the job, and of its run in the trainer. path: of the file that its state is saved to. losses: of each step so
    far, in nats. epoch_end: what an epoch has just ended with, until someone takes it away. objective: a key of
    JOB_LOSSES. beta: of DPO.

    Raises RecipeError where the file is of other rows, or damaged.
    """

    def __init__(
        self,
        id: str,
        trainer: LiveTrainer,
        recipe: Recipe,
        rows: PackedRows,
        held_out: PackedRows | None,
        path: Path,
        objective: str = SUPERVISED,
        beta: float | None = None,
    ) -> None:
        self.id, self.losses, self.epoch_end = id, list[float](), cast(EpochEnd | None, None)
        self.steps = StepRows(recipe, rows)
        self._trainer, self._recipe, self._path = trainer, recipe, path
        self._rows, self._held_out = rows, held_out
        self._loss, self._beta = JOB_LOSSES[objective], DEFAULT_BETA if beta is None else beta
        self._settings = AdamSettings(weight_decay=recipe.weight_decay)
        self._work = self._trained()
        self._waits: Futures = ()
        trainer.open(id, self._restored())

    @property
    def step(self) -> int:
        """How many steps it has made, as far as it knows."""
        return len(self.losses)

    @property
    def is_ready(self) -> bool:
        """Whether all that it waits for is there."""
        return all(future.done() for future in self._waits)

    @property
    def is_resting(self) -> bool:
        """Whether it waits for nothing, so that its state in the trainer is that after its last step."""
        return not self._waits

    @property
    def is_settled(self) -> bool:
        """Whether it rests, and nothing of an epoch's end is left to do: then it can go on, be saved, or leave."""
        return self.is_resting and self.epoch_end is None

    def advance(self) -> bool:
        """Takes what is there or asks for what comes next; returns False once the job is done.

        Raises what the trainer raised for it.
        """
        for future in self._waits:
            future.result(0)
        waits = next(self._work, None)
        self._waits = waits or ()
        return waits is not None

    def save(self, state: RunState) -> None:
        """Writes all that a restarted trainer needs, whole or not at all. state: after the last step."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        checkpoint.write(self._path, state.tensors() | {"losses": losses, ROWS: self._digest})

    def take_state(self) -> Future[Result]:
        """Asks for its state."""
        return self._trainer.submit(self.id, TakeState())

    @property
    def train_loss(self) -> float:
        """The mean of the last steps."""
        recent = self.losses[-RECENT:]
        return sum(recent) / max(1, len(recent))

    def close(self, *, forget: bool) -> None:
        """Leaves the trainer. forget: what was saved, too."""
        self._trainer.close(self.id)
        if forget:
            self._path.unlink(missing_ok=True)

    def _trained(self) -> Iterator[Futures]:
        """All of its work, in parts that it waits for; nothing is where it rests."""
        while self.step < self.steps.total:
            made = yield from self._weighed(self.steps.of(self.step))
            passed, stepped = self._trainer.submit(self.id, made.asked), self._stepped()
            yield passed, stepped
            self.losses.append(_loss_of(passed) if made.loss is None else made.loss)
            if self.step % self.steps.epoch_steps == 0 or self.step == self.steps.total:
                yield from self._epoch_ended()
            yield ()

    def _weighed(self, rows: EncodedRows, *, is_base: bool = False) -> Generator[Futures, None, WeightedPass]:
        """The pass that trains on these rows, and what it needs to know before. is_base: of the base's own answers."""
        asked = [replace(one, is_base=is_base or one.is_base) for one in self._loss.before(rows)]
        before = [self._trainer.submit(self.id, one) for one in asked]
        if before:
            yield before
        return self._loss.trained(rows, [cast(PassResult, one.result(0)) for one in before], self._beta)

    def _stepped(self) -> Future[Result]:
        rate = self._recipe.learning_rate * self.steps.factor(self.step)
        return self._trainer.submit(self.id, OptimizerStep(rate, self._settings, self._recipe.clip))

    def _watched(self, rows: EncodedRows, *, is_base: bool = False) -> Generator[Futures, None, float]:
        """The mean loss of these rows. is_base: without what was trained."""
        made = yield from self._weighed(rows, is_base=is_base)
        if made.loss is not None:
            return made.loss
        passed = self._trainer.submit(self.id, replace(made.asked, backward=False, is_base=is_base))
        yield (passed,)
        return _loss_of(passed)

    def _epoch_ended(self) -> Iterator[Futures]:
        if is_open(self.losses):
            rows = [self._rows[i] for i in range(min(NUM_COMPARED, len(self._rows)))]
            own, bare = (yield from self._watched(rows)), (yield from self._watched(rows, is_base=True))
            check_rows(own, bare, self._recipe.learning_rate)
        valid = None if self._held_out is None else (yield from self._watched([*self._held_out]))
        taken = self.take_state()
        yield (taken,)
        epoch = -(-self.step // self.steps.epoch_steps)
        self.epoch_end = EpochEnd(epoch, self.step, cast(RunState, taken.result(0)), valid)

    def _restored(self) -> RunState | None:
        if not self._path.exists():
            return None
        found = checkpoint.read(self._path)
        if not torch.equal(found[ROWS], self._digest):
            raise RecipeError("the rows are not those that the job began with")
        self.losses = found["losses"].tolist()
        return RunState.from_tensors(found)

    @property
    def _digest(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self._rows.sha256)), dtype=torch.uint8)


def _loss_of(passed: Future[Result]) -> float:
    return cast(PassResult, passed.result(0)).loss
