"""OperationTable: the calls of all runs, as the server sees them: taken once each, and answered when they are done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from sqlite3 import Connection
from types import MappingProxyType
from typing import Any

from polyvera.errors import BusyError, QuotaError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.jobs.job_table import tokens_left
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.jobs.training_run import FIRST_SEQ, RunChoices, RunOperation, run_id

NOTHING: Mapping[str, Any] = MappingProxyType({})
LATE = "this call came too late: later ones of its run have been made without it"
MAX_WAITING, MAX_WAITING_BYTES = 256, 256 << 20
COLUMNS = "run, seq, kind, request, done_s, answer, error, is_users"
WAITING = "SELECT COUNT(*) FROM operations WHERE run = ? AND done_s IS NULL"
WAITING_BYTES = """
SELECT COALESCE(SUM(LENGTH(rows)), 0) FROM operations
WHERE done_s IS NULL AND run IN (SELECT id FROM runs WHERE tenant = ? AND ended_s IS NULL)
"""
OPEN_RUNS = "SELECT COUNT(*) FROM runs WHERE tenant = ? AND ended_s IS NULL"
OWN = f"SELECT {COLUMNS}, logprobs FROM operations WHERE run = ? AND seq = ?"


class OperationTable:
    """Calls in a database. A call that is sent twice is one call."""

    def __init__(self, database: Database, policy: TrainingPolicy) -> None:
        self._database, self._policy = database, policy

    def create_run(
        self,
        tenant: str,
        session: str,
        number: int,
        kind: str,
        choices: RunChoices,
        metadata: Mapping[str, Any],
        request: Mapping[str, Any] = NOTHING,
    ) -> RunOperation:
        """Makes a session's run, by its first call. Raises UnknownObjectError, QuotaError."""
        id, now = run_id(session, number), int(time.time())
        with self._database.changing() as connection:
            if connection.execute("SELECT 1 FROM runs WHERE id = ? AND tenant = ?", (id, tenant)).fetchone() is None:
                self._check_session(connection, tenant, session)
                values = (
                    id,
                    tenant,
                    session,
                    number,
                    json.dumps(asdict(choices)),
                    json.dumps(dict(metadata)),
                    now,
                    now,
                )
                columns = "id, tenant, session, number, choices, metadata, created_s, seen_s"
                connection.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
                _insert(connection, RunOperation(id, FIRST_SEQ, kind, request), None)
        return RunOperation(id, FIRST_SEQ, kind, request)

    def submit(
        self,
        tenant: str,
        run: str,
        seq: int | None,
        kind: str,
        request: Mapping[str, Any],
        rows: bytes | None = None,
        error: str | None = None,
    ) -> RunOperation:
        """Takes a call, to be made after the one before it.

        seq: its place among the run's calls; None is the next. rows: of a pass. error: why it fails; its place is then
        taken all the same. Raises UnknownObjectError for no such run, or one that has ended, BusyError, QuotaError.
        """
        with self._database.changing() as connection:
            saved = self._check_run(connection, tenant, run)
            place = _next_seq(connection, run, saved) if seq is None else seq
            error = LATE if place <= saved and error is None else error
            asked = RunOperation(run, place, kind, request, None if error is None else time.time(), None, error, True)
            if (
                connection.execute("SELECT 1 FROM operations WHERE run = ? AND seq = ?", (run, place)).fetchone()
                is None
            ):
                _check_waiting(connection, tenant, run, 0 if rows is None else len(rows))
                self._check_tokens(connection, tenant, rows)
                _insert(connection, asked, rows)
                connection.execute("UPDATE runs SET seen_s = ? WHERE id = ?", (int(time.time()), run))
        return asked

    def get(self, tenant: str, id: str) -> tuple[RunOperation, bytes | None]:
        """A call of a tenant's run, with the log-probabilities that it gave. Raises UnknownObjectError."""
        run, _, seq = id.rpartition(":")
        if seq.isascii() and seq.isdigit() and len(seq) < 19:
            owned = self._database.rows("SELECT 1 FROM runs WHERE id = ? AND tenant = ?", (run, tenant))
            rows = self._database.rows(OWN, (run, int(seq))) if owned else []
            if rows:
                return RunOperation.of(rows[0]), rows[0]["logprobs"]
        raise UnknownObjectError(f"there is no request {id[:120]!r}")

    def done(self, ids: Iterable[str]) -> set[str]:
        """Which of these calls have their answer, of those that exist."""
        found = set()
        for several in _batches(list(ids), 500):
            parts = [(run, int(seq)) for run, _, seq in (id.rpartition(":") for id in several)]
            marks = ", ".join(["(?, ?)"] * len(parts))
            query = f"SELECT run, seq FROM operations WHERE (run, seq) IN (VALUES {marks}) AND done_s IS NOT NULL"
            rows = self._database.rows(query, [value for part in parts for value in part])
            found |= {f"{row['run']}:{row['seq']}" for row in rows}
        return found

    def _check_session(self, connection: Connection, tenant: str, session: str) -> None:
        query = "SELECT 1 FROM sessions WHERE id = ? AND tenant = ? AND ended_s IS NULL"
        if connection.execute(query, (session, tenant)).fetchone() is None:
            raise UnknownObjectError(f"there is no session {session[:80]!r}, or it has ended")
        if connection.execute(OPEN_RUNS, (tenant,)).fetchone()[0] >= self._policy.max_runs:
            raise QuotaError(f"{self._policy.max_runs:,} of your training runs are open: finish a session first")

    def _check_run(self, connection: Connection, tenant: str, run: str) -> int:
        """Returns the last call whose state is on disk."""
        query = "SELECT ended_s, saved_seq FROM runs WHERE id = ? AND tenant = ?"
        row = connection.execute(query, (run, tenant)).fetchone()
        if row is None:
            raise UnknownObjectError(f"there is no training run {run[:120]!r}")
        if row["ended_s"] is not None:
            raise UnknownObjectError(f"the training run {run} has ended: go on from weights that it saved")
        return int(row["saved_seq"])

    def _check_tokens(self, connection: Connection, tenant: str, rows: bytes | None) -> None:
        left = None if rows is None else tokens_left(connection, tenant, self._policy.max_daily_tokens)
        if left is not None and left <= 0:
            raise QuotaError(f"you have trained on your {self._policy.max_daily_tokens:,} tokens of today (UTC)")


def _insert(connection: Connection, asked: RunOperation, rows: bytes | None) -> None:
    values = (asked.run, asked.seq, asked.kind, json.dumps(dict(asked.request)), asked.done_s, asked.error)
    columns = "run, seq, kind, request, done_s, error, is_users, rows, created_s"
    query = f"INSERT INTO operations ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    connection.execute(query, (*values, asked.is_users, rows, time.time()))


def _next_seq(connection: Connection, run: str, saved: int) -> int:
    found = connection.execute("SELECT MAX(seq) FROM operations WHERE run = ?", (run,)).fetchone()[0]
    return 1 + max(FIRST_SEQ, saved, found or 0)


def _check_waiting(connection: Connection, tenant: str, run: str, num_bytes: int) -> None:
    num = connection.execute(WAITING, (run,)).fetchone()[0]
    if num >= MAX_WAITING:
        raise BusyError(f"{num} calls of this run wait already: wait for their answers first")
    waiting = connection.execute(WAITING_BYTES, (tenant,)).fetchone()[0] if num_bytes else 0
    if waiting + num_bytes > MAX_WAITING_BYTES:
        raise BusyError(f"rows of {waiting:,} bytes of yours wait already: wait for their answers first")


def _batches(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
