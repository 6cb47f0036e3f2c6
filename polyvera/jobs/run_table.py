"""RunTable: the sessions and runs of all tenants, as the server sees them. A tenant reaches its own alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from sqlite3 import Connection
from typing import Any
from uuid import uuid4

from polyvera.errors import QuotaError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.jobs.training_run import TrainingRun, TrainingSession

ENDED = "the training run has ended: go on from weights that it saved"
SEEN_S = 30  # how exactly it is known when a session was last heard of
MAX_SESSIONS = 10_000
OPEN_SESSIONS = "SELECT COUNT(*) FROM sessions WHERE tenant = ? AND ended_s IS NULL"


class RunTable:
    """Sessions and runs in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_session(self, tenant: str, display_name: str | None, metadata: Mapping[str, Any]) -> str:
        """Opens a session; returns its id. Raises QuotaError."""
        id, now = str(uuid4()), int(time.time())
        with self._database.changing() as connection:
            if connection.execute(OPEN_SESSIONS, (tenant,)).fetchone()[0] >= MAX_SESSIONS:
                raise QuotaError(f"{MAX_SESSIONS:,} of your sessions are open: finish some first")
            values = (id, tenant, display_name, json.dumps(dict(metadata)), now, now, None)
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return id

    def session(self, tenant: str, id: str) -> TrainingSession:
        """A session of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM sessions WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"there is no session {id[:80]!r}")
        return TrainingSession.of(rows[0])

    def beat(self, tenant: str, id: str) -> None:
        """Notes that a session is alive. Raises UnknownObjectError."""
        now = int(time.time())
        if self.session(tenant, id).seen_s < now - SEEN_S:
            with self._database.changing() as connection:
                connection.execute("UPDATE sessions SET seen_s = ? WHERE id = ?", (now, id))

    def finish(self, tenant: str, id: str) -> None:
        """Ends a session and its runs; what they saved stays. Raises UnknownObjectError."""
        self.session(tenant, id)
        with self._database.changing() as connection:
            end_session(connection, id)

    def sessions(self, tenant: str, limit: int, offset: int) -> Sequence[str]:
        """Ids of a tenant's sessions, the newest first."""
        query = "SELECT id FROM sessions WHERE tenant = ? ORDER BY rowid DESC LIMIT ? OFFSET ?"
        return [row["id"] for row in self._database.rows(query, (tenant, limit, offset))]

    def get(self, tenant: str, id: str) -> TrainingRun:
        """A run of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM runs WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"there is no training run {id[:120]!r}")
        return TrainingRun.of(rows[0])

    def list(self, tenant: str, limit: int, offset: int) -> tuple[Sequence[TrainingRun], int]:
        """So many of a tenant's runs, the newest first, and how many it has in all."""
        total = self._database.rows("SELECT COUNT(*) AS num FROM runs WHERE tenant = ?", (tenant,))[0]["num"]
        query = "SELECT * FROM runs WHERE tenant = ? ORDER BY rowid DESC LIMIT ? OFFSET ?"
        return [TrainingRun.of(row) for row in self._database.rows(query, (tenant, limit, offset))], total

    def of_session(self, id: str) -> Sequence[str]:
        """Ids of a session's runs."""
        query = "SELECT id FROM runs WHERE session = ? ORDER BY number LIMIT 10000"
        return [row["id"] for row in self._database.rows(query, (id,))]

    def end(self, tenant: str, id: str) -> None:
        """Ends a run; what it saved stays. Raises UnknownObjectError."""
        self.get(tenant, id)
        with self._database.changing() as connection:
            end_runs(connection, "id", id)


def end_session(connection: Connection, id: str) -> None:
    """Ends a session and its runs."""
    change = "UPDATE sessions SET ended_s = ? WHERE id = ? AND ended_s IS NULL"
    connection.execute(change, (int(time.time()), id))
    end_runs(connection, "session", id)


def end_runs(connection: Connection, column: str, value: str, why: str = ENDED, *, is_users: bool = True) -> None:
    """Ends the runs that have that value in that column; what they still wait for fails."""
    runs = f"SELECT id FROM runs WHERE {column} = ? AND ended_s IS NULL"
    change = f"UPDATE operations SET done_s = ?, error = ?, is_users = ?, rows = NULL WHERE run IN ({runs})"
    connection.execute(f"{change} AND done_s IS NULL", (time.time(), why, is_users, value))
    change = f"UPDATE runs SET ended_s = ?, attempts = 0 WHERE {column} = ? AND ended_s IS NULL"
    connection.execute(change, (int(time.time()), value))
