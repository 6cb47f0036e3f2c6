"""OperationQueue: the calls of all runs, as the trainer sees them: what has come, what each gave, what is saved.

A run is what was saved of it last and the calls since then, which are kept until a later state is on disk; a trainer
that was killed makes them again, and what they gave the first time stands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from polyvera.jobs.database import Database
from polyvera.jobs.job_table import today
from polyvera.jobs.operation_table import COLUMNS
from polyvera.jobs.run_table import end_runs, end_session
from polyvera.jobs.training_run import RunOperation, TrainingRun

MAX_ATTEMPTS = 5
KEPT_S = 3600.0  # what a call gave can be fetched for so long
SILENT_S = 24 * 3600  # a session that is not heard of for so long has ended
UNDONE = "SELECT run FROM operations WHERE done_s IS NULL AND run IN (SELECT id FROM runs WHERE ended_s IS NULL)"
NEW = f"""
SELECT operations.number, {COLUMNS} FROM operations JOIN runs ON runs.id = operations.run
WHERE operations.number > ? AND runs.ended_s IS NULL AND seq > runs.saved_seq ORDER BY operations.number LIMIT 1000
"""


@dataclass(frozen=True, slots=True)
class RunAnswer:
    """What a call gave: an answer, or an error and whether it is its tenant's. num_tokens: that it trained on."""

    run: str
    seq: int
    answer: dict[str, Any] | None = None
    logprobs: bytes | None = None
    error: str | None = None
    is_users: bool = False
    num_tokens: int = 0


class OperationQueue:
    """The trainer's side of the runs in a database."""

    def __init__(self, database: Database) -> None:
        self._database, self._seen = database, 0

    def recover(self) -> None:
        """Counts a start for every run that waits for the trainer; who brought it down too often has ended."""
        with self._database.changing() as connection:
            connection.execute(f"UPDATE runs SET attempts = attempts + 1 WHERE id IN ({UNDONE})")
            broken = connection.execute("SELECT id, attempts FROM runs WHERE attempts > ?", (MAX_ATTEMPTS,)).fetchall()
            for row in broken:
                why = f"the trainer ended {row['attempts']} times while it made this call"
                end_runs(connection, "id", row["id"], why, is_users=False)

    def new(self) -> Sequence[RunOperation]:
        """The next calls that have come, in the order in which they came."""
        rows = self._database.rows(NEW, (self._seen,))
        self._seen = rows[-1]["number"] if rows else self._seen
        return [RunOperation.of(row) for row in rows]

    def run(self, id: str) -> TrainingRun | None:
        """A run, None where it is gone or has ended."""
        rows = self._database.rows("SELECT * FROM runs WHERE id = ? AND ended_s IS NULL", (id,))
        return TrainingRun.of(rows[0]) if rows else None

    def ended(self, ids: Iterable[str]) -> set[str]:
        """Which of these runs have ended."""
        known = set(ids)
        query = "SELECT id FROM runs WHERE ended_s IS NOT NULL AND id IN (SELECT value FROM json_each(?))"
        rows = self._database.rows(query, (json.dumps([*known]),)) if known else []
        return {row["id"] for row in rows}

    def rows(self, asked: RunOperation) -> bytes:
        """The rows of a pass."""
        query = "SELECT rows FROM operations WHERE run = ? AND seq = ?"
        return bytes(self._database.rows(query, (asked.run, asked.seq))[0]["rows"] or b"")

    def decide(self, run: str, method: str, rank: int) -> None:
        """Keeps what a run trains."""
        with self._database.changing() as connection:
            connection.execute("UPDATE runs SET method = ?, rank = ? WHERE id = ?", (method, rank, run))

    def end(self, run: str) -> None:
        """Ends a run that cannot be trained."""
        with self._database.changing() as connection:
            end_runs(connection, "id", run)

    def record(self, answers: Sequence[RunAnswer]) -> None:
        """Keeps what calls gave, all of it at once; what a call gave before stands, and costs once."""
        with self._database.changing() as connection:
            for answer in answers:
                _record(connection, answer)

    def saved(self, run: str, seq: int) -> None:
        """Says that a run's state after that call is on disk, so that the rows up to it are needed no more."""
        with self._database.changing() as connection:
            connection.execute("UPDATE runs SET saved_seq = MAX(saved_seq, ?) WHERE id = ?", (seq, run))
            change = "UPDATE operations SET rows = NULL WHERE run = ? AND seq <= ? AND rows IS NOT NULL"
            connection.execute(change, (run, seq))

    def tidy(self) -> None:
        """Ends what is silent, and forgets what nobody fetched in time, and the calls of runs that have ended."""
        now = time.time()
        with self._database.changing() as connection:
            silent = "SELECT id FROM sessions WHERE ended_s IS NULL AND seen_s < ?"
            for row in connection.execute(silent, (now - SILENT_S,)).fetchall():
                end_session(connection, row["id"])
            old = "run IN (SELECT id FROM runs WHERE ended_s IS NOT NULL OR saved_seq >= operations.seq)"
            connection.execute(f"DELETE FROM operations WHERE done_s < ? AND {old}", (now - KEPT_S,))


def _record(connection: Connection, answer: RunAnswer) -> None:
    said = None if answer.answer is None else json.dumps(answer.answer)
    change = """
    UPDATE operations SET done_s = ?, answer = ?, logprobs = ?, error = ?, is_users = ?
    WHERE run = ? AND seq = ? AND done_s IS NULL
    """
    values = (time.time(), said, answer.logprobs, answer.error, answer.is_users, answer.run, answer.seq)
    if not connection.execute(change, values).rowcount:
        return
    connection.execute("UPDATE runs SET attempts = 0 WHERE id = ? AND attempts > 0", (answer.run,))
    if answer.num_tokens:
        add = """
        INSERT INTO usage SELECT tenant, ?2, ?3 FROM runs WHERE id = ?1
        ON CONFLICT DO UPDATE SET tokens = tokens + ?3
        """
        connection.execute(add, (answer.run, today(), answer.num_tokens))
