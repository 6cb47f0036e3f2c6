"""Database: files, jobs, events and usage in one SQLite file, which any number of threads and processes may use."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any

from polyvera.errors import StoreFullError, StoreUnavailableError
from polyvera.store.durable import FULL, make_folder, replace_file

log = logging.getLogger(__name__)
FILE = "jobs.sqlite"
BUSY_S = 30.0
OWNER_ONLY = 0o700
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, num_rows INTEGER NOT NULL, created_s INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, status TEXT NOT NULL, model TEXT NOT NULL,
    training_file TEXT NOT NULL, validation_file TEXT, choices TEXT NOT NULL, created_s INTEGER NOT NULL,
    finished_s INTEGER, error TEXT, fine_tuned_model TEXT, trained_tokens INTEGER NOT NULL DEFAULT 0,
    step INTEGER NOT NULL DEFAULT 0, num_steps INTEGER, planned_tokens INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_of_tenant ON jobs (tenant, created_s);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, created_s INTEGER NOT NULL, level TEXT NOT NULL,
    type TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job, number);
CREATE TABLE IF NOT EXISTS checkpoints (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, step INTEGER NOT NULL, created_s INTEGER NOT NULL,
    model TEXT NOT NULL, metrics TEXT NOT NULL, UNIQUE (job, step));
CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (tenant, day));
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL, created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL,
    status TEXT NOT NULL, file TEXT);
CREATE TABLE IF NOT EXISTS parts (
    id TEXT PRIMARY KEY, upload TEXT NOT NULL, num_bytes INTEGER NOT NULL, created_s INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS parts_of_upload ON parts (upload);
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, display_name TEXT, metadata TEXT NOT NULL, created_s INTEGER NOT NULL,
    seen_s INTEGER NOT NULL, ended_s INTEGER);
CREATE INDEX IF NOT EXISTS sessions_of_tenant ON sessions (tenant, created_s);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, session TEXT NOT NULL, number INTEGER NOT NULL, choices TEXT NOT NULL,
    metadata TEXT NOT NULL, created_s INTEGER NOT NULL, seen_s INTEGER NOT NULL, ended_s INTEGER,
    saved_seq INTEGER NOT NULL DEFAULT -1, attempts INTEGER NOT NULL DEFAULT 0, method TEXT, rank INTEGER,
    UNIQUE (session, number));
CREATE INDEX IF NOT EXISTS runs_of_tenant ON runs (tenant, created_s);
CREATE TABLE IF NOT EXISTS operations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    request TEXT NOT NULL, rows BLOB, created_s REAL NOT NULL, done_s REAL, answer TEXT, logprobs BLOB, error TEXT,
    is_users INTEGER NOT NULL DEFAULT 0, UNIQUE (run, seq));
CREATE INDEX IF NOT EXISTS waiting_operations ON operations (run) WHERE done_s IS NULL;
CREATE TABLE IF NOT EXISTS weights (
    path TEXT PRIMARY KEY, tenant TEXT NOT NULL, run TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, file TEXT, adapter TEXT, num_bytes INTEGER NOT NULL, method TEXT NOT NULL,
    rank INTEGER NOT NULL, metadata TEXT NOT NULL, created_s INTEGER NOT NULL, expires_s INTEGER,
    is_named INTEGER NOT NULL DEFAULT 1);
CREATE INDEX IF NOT EXISTS weights_of_run ON weights (run, created_s);
CREATE TABLE IF NOT EXISTS samplers (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, session TEXT NOT NULL, path TEXT, adapter TEXT,
    created_s INTEGER NOT NULL);
"""


class Database:
    """The file in a folder, both made where they are missing. Raises StoreUnavailableError where that can't be done."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self._own = local()
        try:
            if not folder.is_dir():
                make_folder(folder.absolute())
                folder.chmod(OWNER_ONLY)  # tenants' rows are in it
        except OSError as error:
            raise StoreUnavailableError(f"the folder of jobs {folder} cannot be made: {error.strerror}") from error
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is alone in changing anything: whole and durable, or nothing where its body raises."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which it keeps: a new one reads the whole schema first."""
        try:
            if not hasattr(self._own, "connection"):
                self._own.connection = sqlite3.connect(self.path, BUSY_S, isolation_level=None)
                self._own.connection.row_factory = sqlite3.Row
            yield self._own.connection
        except sqlite3.DatabaseError as error:
            self._own = local()  # whatever is wrong with it, the next one is another
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            kind = StoreFullError if is_full else StoreUnavailableError
            raise kind(f"the database of jobs {self.path} cannot be used: {error}") from error

    def keep(self, path: Path, data: bytes) -> None:
        """Writes a file beside it. Raises StoreFullError, StoreUnavailableError, and then leaves nothing."""
        try:
            replace_file(path, data)
        except OSError as error:
            kind = StoreFullError if error.errno in FULL else StoreUnavailableError
            raise kind(f"{path} cannot be written: {error.strerror}") from error

    def drop(self, paths: Iterable[Path]) -> None:
        """Removes files that no row names any more. One that stays is logged: what was done is done without it."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be removed: %s", path, error.strerror)


class ChangeWatch:
    """Says whether anyone has changed the database since it was last asked, in microseconds; for one caller."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, BUSY_S, check_same_thread=False)
        self._seen: int | None = None

    def has_changed(self) -> bool:
        """Whether there is anything new; the first time there is."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        changed, self._seen = version != self._seen, version
        return bool(changed)

    def close(self) -> None:
        """Ends it."""
        self._connection.close()


def decoded(row: sqlite3.Row, *columns: str) -> dict[str, Any]:
    """A row by the names of its columns; these hold JSON, or nothing."""
    values: dict[str, Any] = dict(row)
    return values | {name: json.loads(row[name]) for name in columns if row[name] is not None}
