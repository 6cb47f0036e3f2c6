"""A database with two tenants' files."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import FineTuningJob, JobChoices
from polyvera.jobs.training_policy import TrainingPolicy

ROWS = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2}"} for i in range(12)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def opened(folder: Path, **choices) -> FineTuning:
    return FineTuning.open(TrainingPolicy(folder=folder, **choices))


def upload(tuning: FineTuning, tenant: str, data: bytes = DATA) -> str:
    return tuning.files.add(tenant, "rows.jsonl", "fine-tune", data).id


def create(tuning: FineTuning, tenant: str, **choices) -> FineTuningJob:
    return tuning.jobs.create(tenant, "tiny", upload(tuning, tenant), None, JobChoices(**{"seed": 0, **choices}))


class FullConnection:
    """A connection to a database on a disk that is full once a transaction is to be kept."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if query == "COMMIT":
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._connection.execute(query, *values)


@contextmanager
def failing_commits(database: Database) -> Iterator[None]:
    """This thread's transactions meanwhile are not kept, for the disk is full."""
    database.rows("SELECT 1")
    own, database._own.connection = database._own, FullConnection(database._own.connection)
    yield
    assert database._own is not own  # it was used, and is no longer
