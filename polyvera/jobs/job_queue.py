"""JobQueue: the jobs of all tenants, as the trainer sees them: which is next, how far each is, how it ended.

What a tenant did to a job in the meantime wins: a job that is no longer running changes no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from sqlite3 import Connection

from polyvera.errors import QuotaError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, FineTuningJob, JobError
from polyvera.jobs.job_table import add_event, today, tokens_left

MAX_ATTEMPTS = 5
# The oldest job of the tenant that has the fewest running, and then has trained the least today.
NEXT = """
SELECT * FROM jobs WHERE status = 'queued' ORDER BY
    (SELECT COUNT(*) FROM jobs AS other WHERE other.tenant = jobs.tenant AND other.status = 'running'),
    (SELECT COALESCE(SUM(tokens), 0) FROM usage WHERE usage.tenant = jobs.tenant AND day = ?),
    rowid
LIMIT 1
"""
# What a tenant's other running jobs will still train on.
PROMISED = """
SELECT COALESCE(SUM(MAX(0, planned_tokens - trained_tokens)), 0) FROM jobs WHERE tenant = ? AND status = ? AND id != ?
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """A step that a job made. tokens: all that it has trained on so far. metrics: of the step, by name."""

    job: str
    step: int
    tokens: int
    metrics: Mapping[str, float]


class JobQueue:
    """The trainer's side of the jobs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def recover(self) -> None:
        """Puts what a trainer that has died was training back in line; who brought it down too often fails."""
        with self._database.changing() as connection:
            rows = connection.execute("SELECT * FROM jobs WHERE status = ?", (RUNNING,)).fetchall()
            for job in map(FineTuningJob.of, rows):
                if job.attempts < MAX_ATTEMPTS:
                    connection.execute("UPDATE jobs SET status = ? WHERE id = ?", (QUEUED, job.id))
                else:
                    error = JobError("server_error", f"the trainer ended {job.attempts} times while it ran this job")
                    _end(connection, job.id, FAILED, error)

    def claim(self) -> FineTuningJob | None:
        """The next job, which is running now; None where nobody waits."""
        if not self._database.rows("SELECT 1 FROM jobs WHERE status = ? LIMIT 1", (QUEUED,)):
            return None  # without the lock that those who write wait for
        with self._database.changing() as connection:
            row = connection.execute(NEXT, (today(),)).fetchone()
            if row is None:
                return None
            change = "UPDATE jobs SET status = ?, attempts = attempts + 1 WHERE id = ?"
            connection.execute(change, (RUNNING, row["id"]))
            if not row["step"]:
                add_event(connection, row["id"], "Fine-tuning job started")
        return FineTuningJob.of(row)

    def plan(self, job: FineTuningJob, num_steps: int, num_tokens: int, max_daily_tokens: int | None) -> None:
        """Says how long a job will be. Raises QuotaError where its tokens are more than its tenant has left today."""
        with self._database.changing() as connection:
            left = tokens_left(connection, job.tenant, max_daily_tokens)
            more = num_tokens - job.trained_tokens
            promised = connection.execute(PROMISED, (job.tenant, RUNNING, job.id)).fetchone()[0]
            if left is not None and more > left - promised:
                still = max(0, left - promised)
                raise QuotaError(f"the job trains on {more:,} tokens, and you have {still:,} left today (UTC)")
            change = "UPDATE jobs SET num_steps = ?, planned_tokens = ? WHERE id = ?"
            connection.execute(change, (num_steps, num_tokens, job.id))

    def record(self, made: Iterable[Progress]) -> None:
        """Keeps the steps that jobs made; one that was made before a restart counts, and costs, once."""
        with self._database.changing() as connection:
            for progress in made:
                _record(connection, progress)

    def statuses(self, ids: Iterable[str]) -> dict[str, str | None]:
        """The status of each of these jobs that runs no longer, since its tenant changed it, and None of the others."""
        known = {id: str(CANCELLED) for id in ids}
        marks = ", ".join("?" * len(known))
        rows = self._database.rows(f"SELECT id, status FROM jobs WHERE id IN ({marks})", list(known)) if known else []
        found = known | {row["id"]: row["status"] for row in rows}
        return {id: None if status == RUNNING else status for id, status in found.items()}

    def add_checkpoint(self, job: str, step: int, model: str, metrics: Mapping[str, float]) -> None:
        """Keeps what a job published at a step, once."""
        columns = "job, step, created_s, model, metrics"
        values = (job, step, int(time.time()), model, json.dumps(dict(metrics)))
        with self._database.changing() as connection:
            query = f"INSERT OR IGNORE INTO checkpoints ({columns}) VALUES (?, ?, ?, ?, ?)"
            if connection.execute(query, values).rowcount:
                add_event(connection, job, f"Checkpoint created at step {step}: {model}")

    def warn(self, job: str, words: str) -> None:
        """Tells a job's creator of something that is left out."""
        with self._database.changing() as connection:
            add_event(connection, job, words, "warn")

    def succeed(self, job: str, model: str) -> None:
        """Ends a job with what it made."""
        with self._database.changing() as connection:
            _end(connection, job, SUCCEEDED, None, model)

    def fail(self, job: str, error: JobError) -> None:
        """Ends a job that cannot be trained."""
        with self._database.changing() as connection:
            _end(connection, job, FAILED, error)


def _record(connection: Connection, made: Progress) -> None:
    query = "SELECT tenant, trained_tokens FROM jobs WHERE id = ? AND step < ? AND status = ?"
    row = connection.execute(query, (made.job, made.step, RUNNING)).fetchone()
    if row is None:
        return
    change = "UPDATE jobs SET step = ?, trained_tokens = ?, attempts = 0 WHERE id = ?"
    connection.execute(change, (made.step, made.tokens, made.job))
    more = made.tokens - row["trained_tokens"]
    add = "INSERT INTO usage VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET tokens = tokens + ?3"
    connection.execute(add, (row["tenant"], today(), more))
    loss = made.metrics.get("train_loss", 0.0)
    add_event(
        connection, made.job, f"Step {made.step}: training loss={loss:.4f}", data={"step": made.step, **made.metrics}
    )


def _end(connection: Connection, job: str, status: str, error: JobError | None, model: str | None = None) -> None:
    said = None if error is None else json.dumps(asdict(error))
    change = "UPDATE jobs SET status = ?, finished_s = ?, error = ?, fine_tuned_model = ? WHERE id = ? AND status = ?"
    if connection.execute(change, (status, int(time.time()), said, model, job, RUNNING)).rowcount:
        words = f"New fine-tuned model created: {model}" if error is None else error.message
        add_event(connection, job, words, "info" if error is None else "error")
        if error is None:
            add_event(connection, job, "The job has successfully completed")
