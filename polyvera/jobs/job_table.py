"""JobTable: the jobs of all tenants, as the server sees them. A tenant reaches its own alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Any
from uuid import uuid4

from polyvera.errors import ConflictError, QuotaError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import (
    ACTIVE,
    CANCELLED,
    PAUSED,
    QUEUED,
    RUNNING,
    FineTuningJob,
    JobCheckpoint,
    JobChoices,
    JobEvent,
)
from polyvera.jobs.training_policy import TrainingPolicy

# What a tenant may do to a job: the statuses that it may be in, the one that it gets, and how the event says it.
MOVES = {
    "cancel": (ACTIVE, CANCELLED, "The job was cancelled"),
    "pause": ((QUEUED, RUNNING), PAUSED, "The job was paused"),
    "resume": ((PAUSED,), QUEUED, "The job was resumed"),
}


class JobTable:
    """Jobs, their events and their checkpoints in a database."""

    def __init__(self, database: Database, policy: TrainingPolicy) -> None:
        self._database, self._policy = database, policy

    def create(
        self, tenant: str, model: str, training_file: str, validation_file: str | None, choices: JobChoices
    ) -> FineTuningJob:
        """Puts a job in line. Raises UnknownObjectError for files that are not the tenant's, QuotaError."""
        id, now = f"ftjob-{uuid4().hex}", int(time.time())
        values = (id, tenant, QUEUED, model, training_file, validation_file, json.dumps(asdict(choices)), now)
        columns = "id, tenant, status, model, training_file, validation_file, choices, created_s"
        with self._database.changing() as connection:
            for file in (training_file, validation_file):
                _check_file(connection, tenant, file)
            self._check_quota(connection, tenant)
            connection.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            add_event(connection, id, f"Created fine-tuning job: {id}")
        return self.get(tenant, id)

    def get(self, tenant: str, id: str) -> FineTuningJob:
        """A job of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM jobs WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"Could not find fine tune: {id[:80]}")
        return FineTuningJob.of(rows[0])

    def list(self, tenant: str, limit: int, after: str | None = None) -> Sequence[FineTuningJob]:
        """So many of a tenant's jobs, the newest first. after: the id of the last one that was seen."""
        query, values = "SELECT * FROM jobs WHERE tenant = ?", [tenant]
        if after is not None:
            seen = self.get(tenant, after)
            query += " AND rowid < (SELECT rowid FROM jobs WHERE id = ?)"
            values.append(seen.id)
        rows = self._database.rows(f"{query} ORDER BY rowid DESC LIMIT ?", [*values, limit])
        return [FineTuningJob.of(row) for row in rows]

    def move(self, tenant: str, id: str, verb: str) -> FineTuningJob:
        """Cancels, pauses or resumes a job. Raises UnknownObjectError, ConflictError where its status forbids that."""
        allowed, status, words = MOVES[verb]
        with self._database.changing() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ? AND tenant = ?", (id, tenant)).fetchone()
            if row is None:
                raise UnknownObjectError(f"Could not find fine tune: {id[:80]}")
            if row["status"] not in allowed:
                raise ConflictError(f"{id} is {row['status']}: a job must be {' or '.join(allowed)} to {verb} it")
            ended = int(time.time()) if status == CANCELLED else None
            connection.execute(
                "UPDATE jobs SET status = ?, finished_s = ?, attempts = 0 WHERE id = ?", (status, ended, id)
            )
            add_event(connection, id, words)
        return self.get(tenant, id)

    def events(self, tenant: str, id: str, limit: int, after: int | None = None) -> Sequence[JobEvent]:
        """So many of a job's events, the newest first. after: the number of the last one that was seen."""
        rows = self._of_job("events", tenant, id, limit, after)
        return [JobEvent.of(row) for row in rows]

    def events_since(self, tenant: str, id: str, number: int, limit: int) -> Sequence[JobEvent]:
        """So many of a job's events behind that number, the oldest first."""
        self.get(tenant, id)
        query = "SELECT * FROM events WHERE job = ? AND number > ? ORDER BY number LIMIT ?"
        return [JobEvent.of(row) for row in self._database.rows(query, (id, number, limit))]

    def checkpoints(self, tenant: str, id: str, limit: int, after: int | None = None) -> Sequence[JobCheckpoint]:
        """So many of a job's checkpoints, the newest first."""
        rows = self._of_job("checkpoints", tenant, id, limit, after)
        return [JobCheckpoint.of(row) for row in rows]

    def _of_job(self, table: str, tenant: str, id: str, limit: int, after: int | None) -> Sequence[Any]:
        self.get(tenant, id)
        query = f"SELECT * FROM {table} WHERE job = ? AND number < ? ORDER BY number DESC LIMIT ?"
        return self._database.rows(query, (id, 2**62 if after is None else after, limit))

    def _check_quota(self, connection: Connection, tenant: str) -> None:
        marks = ", ".join("?" * len(ACTIVE))
        count = f"SELECT COUNT(*) FROM jobs WHERE tenant = ? AND status IN ({marks})"
        active = connection.execute(count, (tenant, *ACTIVE)).fetchone()[0]
        if active >= self._policy.max_jobs:
            raise QuotaError(f"{active} of your jobs have not ended, and you may have {self._policy.max_jobs}")
        left = tokens_left(connection, tenant, self._policy.max_daily_tokens)
        if left is not None and left <= 0:
            raise QuotaError(f"you have trained on your {self._policy.max_daily_tokens:,} tokens of today (UTC)")


def add_event(
    connection: Connection, job: str, message: str, level: str = "info", data: Mapping[str, float] | None = None
) -> None:
    """Adds an event: a message, or metrics where there is data."""
    values = (job, int(time.time()), level, "metrics" if data else "message", message, json.dumps(data or {}))
    columns = "job, created_s, level, type, message, data"
    connection.execute(f"INSERT INTO events ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)


def tokens_left(connection: Connection, tenant: str, most: int | None) -> int | None:
    """How many tokens a tenant may still train on today, None for any number."""
    if most is None:
        return None
    query = "SELECT tokens FROM usage WHERE tenant = ? AND day = ?"
    used = connection.execute(query, (tenant, today())).fetchone()
    return most - (0 if used is None else int(used["tokens"]))


def today() -> str:
    """The day by which tokens are counted, in UTC."""
    return datetime.now(UTC).date().isoformat()


def _check_file(connection: Connection, tenant: str, file: str | None) -> None:
    query = "SELECT 1 FROM files WHERE id = ? AND tenant = ?"
    if file is not None and connection.execute(query, (file, tenant)).fetchone() is None:
        raise UnknownObjectError(f"No such File object: {file[:80]}")
