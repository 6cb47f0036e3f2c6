"""JobWorker: takes jobs from the queue, trains all of them in the same batches, and publishes what they become."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from polyvera.data.packed_rows import PackedRows
from polyvera.data.tables import Table
from polyvera.errors import DataError, DivergedError, NonFiniteError, NotFoundError, QuotaError, RecipeError, StoreError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import CANCELLED, DPO, SUPERVISED, FineTuningJob, JobError
from polyvera.jobs.job_queue import JobQueue, Progress
from polyvera.jobs.training_files import TrainingFiles, read_table
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.store.registry import Registry
from polyvera.train.live.job_run import EpochEnd, JobRun
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.run_state import RunState
from polyvera.train.preparation import encode_tables
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tables

log = logging.getLogger(__name__)
RUNS = "runs"
SAVE_S, RETRY_S, READ_S = 10.0, 5.0, 0.2
BAD_FILE = ("invalid_training_file", "training_file")
# How an error of a job is told to its tenant: the first row that fits; any other is the server's own.
CODES: tuple[tuple[type[Exception], tuple[str, str | None]], ...] = (
    (QuotaError, ("insufficient_quota", None)),
    (NonFiniteError, ("training_diverged", None)),
    (DivergedError, ("training_diverged", None)),
    (DataError, BAD_FILE),
    (RecipeError, BAD_FILE),
)


@dataclass(frozen=True, slots=True, eq=False)
class ComingJob:
    """A job whose rows are being read: those to train on, and those to watch."""

    job: FineTuningJob
    rows: Future[tuple[PackedRows, PackedRows | None]]


@dataclass(eq=False)
class WorkedJob:
    """A job and its run. retry_at: when its adapter may be published again."""

    job: FineTuningJob
    run: JobRun
    retry_at: float = 0.0


class JobWorker:
    """Trains the jobs of a database over one trainer, as many at a time as its bank has slots.

    recipe: what every job starts from. save_s: the seconds between two saves of all that trains.
    """

    def __init__(
        self,
        trainer: LiveTrainer,
        database: Database,
        registry: Registry,
        recipe: Recipe,
        policy: TrainingPolicy,
        save_s: float = SAVE_S,
    ) -> None:
        self._trainer, self._registry, self._recipe, self._policy = trainer, registry, recipe, policy
        self._queue, self._files = JobQueue(database), TrainingFiles(database, policy.max_tenant_bytes)
        self._folder, self._save_s, self._saved = database.folder / RUNS, save_s, time.monotonic()
        self._jobs: dict[str, WorkedJob] = {}
        self._coming: dict[str, ComingJob] = {}
        self._reader = ThreadPoolExecutor(1, "polyvera-rows")
        self._made: list[Progress] = []
        self._queue.recover()

    def work(self) -> bool:
        """Admits, asks, trains one round, and settles; returns whether there is anything to do."""
        self._let_go()
        self._admit()
        self._each(lambda worked: worked.run.is_settled, self._advance)
        self._trainer.round()
        self._each(lambda worked: worked.run.is_ready and not worked.run.is_resting, self._advance)
        self._each(lambda worked: worked.run.epoch_end is not None, self._publish)
        self._record()
        if time.monotonic() - self._saved > self._save_s:
            self.save()
        return bool(self._jobs or self._coming)

    def save(self) -> None:
        """Writes the state of all that train."""
        self._each(lambda worked: worked.run.is_settled, self._save)
        self._saved = time.monotonic()

    def _each(self, which: Callable[[WorkedJob], bool], work: Callable[[WorkedJob], None]) -> None:
        """Work for each of those jobs; whatever it raises ends that job alone."""
        for worked in [worked for worked in self._jobs.values() if which(worked)]:
            self._guarded(worked.job.id, partial(work, worked))

    def _guarded(self, id: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever one job raises is that job's alone
            log.warning("job %s failed", id, exc_info=error)
            self._queue.fail(id, _told(error))
            self._drop(id, forget=True)

    def _admit(self) -> None:
        """Lets the rows of those who are next be read beside the training, and begins those whose rows are there."""
        while len(self._jobs) + len(self._coming) < self._trainer.bank.num_slots:
            job = self._queue.claim()
            if job is None:
                break
            if job.id not in {*self._jobs, *self._coming}:  # else it was paused and resumed a moment ago
                self._coming[job.id] = ComingJob(job, self._reader.submit(self._rows, job))
        if not self._jobs:
            wait([coming.rows for coming in self._coming.values()], READ_S, FIRST_COMPLETED)
        for coming in [coming for coming in self._coming.values() if coming.rows.done()]:
            del self._coming[coming.job.id]
            self._guarded(coming.job.id, partial(self._begin, coming))

    def _begin(self, coming: ComingJob) -> None:
        job, recipe = coming.job, self._recipe_of(coming.job)
        rows, held_out = coming.rows.result(0)
        path, chosen = self._saved_at(job), job.choices
        run = JobRun(job.id, self._trainer, recipe, rows, held_out, path, chosen.objective, chosen.beta)
        self._jobs[job.id] = WorkedJob(job, run)
        total = run.steps.total
        self._queue.plan(job, total, run.steps.tokens_until(total), self._policy.max_daily_tokens)

    def _saved_at(self, job: FineTuningJob) -> Path:
        return self._folder / f"{job.id}.safetensors"

    def _recipe_of(self, job: FineTuningJob) -> Recipe:
        """The server's recipe with what the job's creator chose."""
        chosen = job.choices
        rate = None if chosen.lr_multiplier is None else chosen.lr_multiplier * self._recipe.learning_rate
        given = {"epochs": chosen.num_epochs, "batch_size": chosen.batch_size, "lr": rate, "run_seed": chosen.seed}
        return self._recipe.replaced(**{name: value for name, value in given.items() if value is not None})

    def _rows(self, job: FineTuningJob) -> tuple[PackedRows, PackedRows | None]:
        ids = [id for id in (job.training_file, job.validation_file) if id is not None]
        tables = [read_table(self._files.path(id), self._files.get(job.tenant, id).filename) for id in ids]
        for one in tables:
            _check_objective(job, one)
            if one.unread_text and not self._saved_at(job).exists():  # else it was told before it was saved
                self._queue.warn(job.id, one.unread_text)
        whole = Tables(tables[0], tables[1] if len(tables) > 1 else None, None)
        encoded, watched = encode_tables(self._recipe_of(job), whole, self._trainer.base)
        return PackedRows.of(encoded), None if watched is None else PackedRows.of(watched)

    def _advance(self, worked: WorkedJob) -> None:
        run, before = worked.run, worked.run.step
        is_open = run.advance()
        for step in range(before, run.step):
            metrics = {"train_loss": run.losses[step]}
            self._made.append(Progress(worked.job.id, step + 1, run.steps.tokens_until(step + 1), metrics))
        if not is_open:
            self._finish(worked)

    def _publish(self, worked: WorkedJob) -> None:
        """Publishes what an epoch ended with, once, whenever the trainer is killed; later where the store fails."""
        end = worked.run.epoch_end
        assert end is not None
        if worked.retry_at > time.monotonic():
            return
        self._record()
        metrics = {"train_loss": worked.run.train_loss}
        metrics |= {} if end.valid_loss is None else {"full_valid_loss": end.valid_loss}
        try:
            model = self._published(worked.job, end, metrics)
        except StoreError as error:
            log.warning("job %s could not be published, it is tried again", worked.job.id, exc_info=error)
            worked.retry_at = time.monotonic() + RETRY_S
            return
        self._queue.add_checkpoint(worked.job.id, end.step, model, metrics)
        worked.run.save(end.state)
        worked.run.epoch_end = None

    def _published(self, job: FineTuningJob, end: EpochEnd, metrics: dict[str, float]) -> str:
        """The reference of the adapter of an epoch, whose version is the epoch's number."""
        name = job.adapter_name
        if self._num_versions(name) < end.epoch:
            scores = {metric.replace("full_valid", "eval"): value for metric, value in metrics.items()}
            lr = self._recipe_of(job).learning_rate
            self._registry.put(name, self._trainer.adapter(end.state, scores, lr))
        return f"{name}@{end.epoch}"

    def _num_versions(self, name: str) -> int:
        with suppress(NotFoundError):
            return self._registry.resolve(name).version
        return 0

    def _finish(self, worked: WorkedJob) -> None:
        self._record()
        self._queue.succeed(worked.job.id, worked.job.adapter_name)
        self._drop(worked.job.id, forget=True)

    def _let_go(self) -> None:
        """Those that were cancelled leave, and those that were paused, with their state saved."""
        statuses = self._queue.statuses(self._jobs)
        self._each(lambda worked: statuses[worked.job.id] == CANCELLED, partial(self._leave, is_cancelled=True))
        self._each(lambda worked: statuses[worked.job.id] is not None and worked.run.is_settled, self._leave)

    def _leave(self, worked: WorkedJob, *, is_cancelled: bool = False) -> None:
        if not is_cancelled:
            self._save(worked)
        self._drop(worked.job.id, forget=is_cancelled)

    def _save(self, worked: WorkedJob) -> None:
        taken = worked.run.take_state()
        self._trainer.round()
        worked.run.save(cast(RunState, taken.result(0)))

    def _record(self) -> None:
        if self._made:
            self._queue.record(self._made)
            self._made = []

    def _drop(self, id: str, *, forget: bool) -> None:
        worked = self._jobs.pop(id, None)
        if worked is not None:
            worked.run.close(forget=forget)


def _check_objective(job: FineTuningJob, rows: Table) -> None:
    """Raises DataError for rows of another kind than the job is to be trained by."""
    own = DPO if rows.row.compares else SUPERVISED
    if own != job.choices.objective:
        raise DataError(f"{rows.source} has rows for method {own}, and the job's is {job.choices.objective}")


def _told(error: Exception) -> JobError:
    code, param = next((told for kind, told in CODES if isinstance(error, kind)), ("server_error", None))
    return JobError(code, "the trainer failed" if code == "server_error" else str(error), param)
