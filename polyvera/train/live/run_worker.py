"""RunWorker: makes the calls of runs that tenants train call by call, in the same batches as all others'."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from polyvera.errors import (
    ConflictError,
    DataError,
    LayoutError,
    NonFiniteError,
    NotFoundError,
    RecipeError,
    ServeError,
    SpecError,
)
from polyvera.jobs.database import ChangeWatch, Database
from polyvera.jobs.operation_queue import OperationQueue, RunAnswer
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.jobs.training_run import CREATE, FIRST_SEQ, LOAD_RUN, RunOperation, TrainingRun
from polyvera.store.registry import Registry
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.operation import Operation, Result, TakeState
from polyvera.train.live.run_calls import RUN_CALLS, CalledRun
from polyvera.train.live.run_state import RunState
from polyvera.train.live.run_trainers import RunTrainers
from polyvera.train.live.saved_run import read_run, write_run
from polyvera.train.live.weights_saver import WeightsSaver

log = logging.getLogger(__name__)
FOLDER = "open_runs"
SAVE_S, TIDY_S, GAP_S, LOOK_S = 10.0, 60.0, 60.0, 0.005
DEPTH = 4  # calls of one run that the trainer has at a time
NUM_SAVED = 32  # states that are written at a time
# What is told to a tenant in the error's own words; all else is the server's own.
USERS = (ConflictError, DataError, LayoutError, NonFiniteError, NotFoundError, RecipeError, ServeError, SpecError)


@dataclass(frozen=True, slots=True, eq=False)
class SubmittedCall:
    """A call that the trainer has. call: None for a state that is to be saved."""

    seq: int
    call: CalledRun | None
    asked: Operation
    future: Future[Result]


@dataclass(eq=False)
class OpenRun:
    """A run in its trainer. seq: the last call that it has got. saved_seq: the last whose state is on disk.

    waiting: calls without a result, and states to be saved, in order. gap_s: since when a call is missing.
    """

    run: TrainingRun
    trainer: LiveTrainer
    seq: int
    saved_seq: int
    waiting: deque[SubmittedCall] = field(default_factory=deque)
    gap_s: float | None = None


class RunWorker:
    """Makes the calls of a database's runs over one or several trainers.

    save_s: the seconds between two saves of all that has changed.
    """

    def __init__(
        self,
        trainers: RunTrainers,
        database: Database,
        registry: Registry,
        policy: TrainingPolicy,
        save_s: float = SAVE_S,
    ) -> None:
        self._trainers, self._save_s, self._folder = trainers, save_s, database.folder / FOLDER
        self._queue, self._saver = OperationQueue(database), WeightsSaver(database, registry, policy.max_tenant_bytes)
        self._watch, self._is_new = ChangeWatch(database.path), True
        self._coming: dict[str, dict[int, RunOperation]] = {}
        self._runs: dict[str, OpenRun] = {}
        self._answers: list[RunAnswer] = []
        self._saved = self._tidied = time.monotonic()
        self._queue.recover()

    def take(self) -> None:
        """Asks the trainers for what has come."""
        if self._is_new or self._watch.has_changed():
            self._is_new = False
            self._look()
        for id in list(self._coming):
            self._advance(id)
            if not self._coming[id]:
                del self._coming[id]
        self._record()

    def work(self) -> None:
        """A round of the trainers that nobody else drives, answers to what is done, and now and then a save."""
        self._trainers.rounds()
        for run in self._runs.values():
            self._settle(run)
        self._record()
        now = time.monotonic()
        if now - self._saved > self._save_s:
            self._saved = now
            self._ask_states()
        if now - self._tidied > TIDY_S:
            self._tidied = now
            self._queue.tidy()
            self._saver.tidy()

    @property
    def is_busy(self) -> bool:
        """Whether a run waits for the trainer."""
        return any(run.waiting for run in self._runs.values())

    def wait(self, ended: Event, timeout_s: float) -> None:
        """Waits until something has come, or for so long."""
        ends = time.monotonic() + timeout_s
        while not self._is_new and time.monotonic() < ends and not ended.wait(LOOK_S):
            self._is_new = self._watch.has_changed()

    def close(self) -> None:
        """Saves the state of all that has changed."""
        while any(run.seq > run.saved_seq for run in self._runs.values()):
            before = sum(run.seq - run.saved_seq for run in self._runs.values())
            self._ask_states()
            while self.is_busy:
                for trainer in {id(run.trainer): run.trainer for run in self._runs.values()}.values():
                    trainer.round()
                for run in self._runs.values():
                    self._settle(run)
            self._record()
            if sum(run.seq - run.saved_seq for run in self._runs.values()) == before:
                break  # a disk that is full
        self._watch.close()

    # --- what has come ---

    def _look(self) -> None:
        while new := self._queue.new():
            for asked in new:
                self._coming.setdefault(asked.run, {})[asked.seq] = asked
        for id in self._queue.ended(self._runs):
            self._drop(id)

    def _advance(self, id: str) -> None:
        """Gives a run's next calls to its trainer."""
        coming = self._coming[id]
        run = self._runs.get(id) or self._opened(id)
        if run is None:
            return
        for seq in [seq for seq in coming if seq <= run.seq]:
            self._refuse_late(coming.pop(seq))
        self._skip_gap(run, coming)
        while (asked := coming.get(run.seq + 1)) is not None and self._has_room(run, asked):
            run.seq += 1
            self._submit(run, coming.pop(run.seq))

    def _has_room(self, run: OpenRun, asked: RunOperation) -> bool:
        return len(run.waiting) < (1 if RUN_CALLS[asked.kind].is_alone else DEPTH)

    def _submit(self, run: OpenRun, asked: RunOperation) -> None:
        """Asks for a call; one that was made before a restart is made again where it changes something."""
        row = RUN_CALLS[asked.kind]
        if asked.error is not None or (asked.done_s is not None and row.is_read):
            return
        call = CalledRun(run.run, run.trainer, self._saver, asked, lambda: self._queue.rows(asked))
        try:
            wanted = row.ask(call)
            run.waiting.append(SubmittedCall(asked.seq, call, wanted, run.trainer.submit(asked.run, wanted)))
        except Exception as error:  # whatever one call raises is that call's alone
            self._answers.append(_failed(asked, error))

    def _refuse_late(self, asked: RunOperation) -> None:
        if asked.done_s is None:
            words = f"call {asked.seq} came too late: later ones of this run have been made without it"
            self._answers.append(RunAnswer(asked.run, asked.seq, error=words, is_users=True))

    def _skip_gap(self, run: OpenRun, coming: dict[int, RunOperation]) -> None:
        """Goes on without a call that never came, such as one that was refused for its size."""
        if not coming or run.seq + 1 in coming or run.waiting:
            run.gap_s = None
        elif run.gap_s is None:
            run.gap_s = time.monotonic()
        elif time.monotonic() - run.gap_s > GAP_S:
            run.seq, run.gap_s = min(coming) - 1, None

    # --- runs that begin, go on after a restart, and end ---

    def _opened(self, id: str) -> OpenRun | None:
        """The run in its trainer, from its last save or its first call; None where neither is there."""
        run, first = self._queue.run(id), self._coming[id].get(FIRST_SEQ)
        if run is None:
            self._coming[id] = {}
            return None
        try:
            (method, rank), trainer = self._trainers.of(run.choices)
            found = read_run(self._path(id))
            if found is None and first is None:
                return None
            seq, state = found or (FIRST_SEQ, self._begun(run, trainer, first))
            trainer.open(id, state)
        except Exception as error:  # whatever one run raises is that run's alone
            self._answers += [_failed(asked, error) for asked in self._coming[id].values() if asked.done_s is None]
            self._coming[id] = {}
            self._record()
            self._queue.end(id)
            return None
        self._queue.decide(id, method, rank)
        opened = OpenRun(replace(run, method=method, rank=rank), trainer, seq, seq if found else FIRST_SEQ - 1)
        self._runs[id] = opened
        if first is not None and first.done_s is None:
            self._answers.append(RunAnswer(id, FIRST_SEQ, {"model_id": id, **_path_of(first)}))
        self._coming[id].pop(FIRST_SEQ, None)
        return opened

    def _begun(self, run: TrainingRun, trainer: LiveTrainer, first: RunOperation | None) -> RunState:
        if first is None or first.kind == CREATE:
            return trainer.fresh(run.choices.seed)
        state = self._saver.load(run, first.request["path"])
        return state if first.request["optimizer"] else state.without_moments()

    def _path(self, id: str) -> Path:
        return self._folder / f"{id.replace(':', '-')}.safetensors"

    def _drop(self, id: str) -> None:
        run = self._runs.pop(id)
        self._coming.pop(id, None)
        run.trainer.close(id)
        self._path(id).unlink(missing_ok=True)

    # --- what is done ---

    def _settle(self, run: OpenRun) -> None:
        """Answers what is done, in order."""
        while run.waiting and run.waiting[0].future.done():
            one = run.waiting.popleft()
            if one.call is None:
                self._save(run, one)
                continue
            try:
                answer = RUN_CALLS[one.call.asked.kind].answer(one.call, one.asked, one.future.result(0))
            except Exception as error:  # whatever one call raises is that call's alone
                answer = _failed(one.call.asked, error)
            self._answers.append(answer)

    def _record(self) -> None:
        if self._answers:
            answers, self._answers = self._answers, []
            self._queue.record(answers)

    def _ask_states(self) -> None:
        """Asks for the state of the runs that have changed, those of which the most calls would be made again first."""
        changed = [run for run in self._runs.values() if run.seq > run.saved_seq and not _is_saving(run)]
        for run in sorted(changed, key=lambda run: run.saved_seq - run.seq)[:NUM_SAVED]:
            wanted = TakeState()
            run.waiting.append(SubmittedCall(run.seq, None, wanted, run.trainer.submit(run.run.id, wanted)))

    def _save(self, run: OpenRun, one: SubmittedCall) -> None:
        try:
            state = one.future.result(0)
            assert isinstance(state, RunState)
            write_run(self._path(run.run.id), one.seq, state)
        except Exception as error:  # such as a full disk: its calls are kept, and it is tried again
            log.warning("the run %s could not be saved", run.run.id, exc_info=error)
            return
        run.saved_seq = one.seq
        self._record()
        self._queue.saved(run.run.id, one.seq)


def _is_saving(run: OpenRun) -> bool:
    return any(one.call is None for one in run.waiting)


def _path_of(first: RunOperation) -> dict[str, str]:
    return {"path": first.request["path"]} if first.kind == LOAD_RUN else {}


def _failed(asked: RunOperation, error: Exception) -> RunAnswer:
    is_users = isinstance(error, USERS)
    if not is_users:
        log.error("call %d of %s failed", asked.seq, asked.run, exc_info=error)
    return RunAnswer(asked.run, asked.seq, error=str(error) if is_users else "the trainer failed", is_users=is_users)
