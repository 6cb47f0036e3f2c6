"""TrainingFiles: what tenants uploaded to train on, each file checked row by row before it counts as there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from sqlite3 import Row as DatabaseRow
from uuid import uuid4

from polyvera.data.row_files import Row, read_rows
from polyvera.data.tables import Table, table
from polyvera.errors import ConflictError, DataError, QuotaError, ServeError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.store.durable import make_folder

FILES = "files"
PREFERENCE = {"input": "prompt", "preferred_output": "chosen", "non_preferred_output": "rejected"}  # theirs: ours
SUFFIX = ".jsonl"
USED = "SELECT COALESCE(SUM(num_bytes), 0) AS used, COUNT(*) AS num FROM files WHERE tenant = ?"
MAX_FILES = 10_000
# What a file may hold, counted before it is read: each part becomes an object, which takes a hundred times its bytes.
MAX_PARTS = {b"\n": ("rows", 100_000), b"{": ("objects", 1 << 20), b"[": ("lists", 1 << 19), b",": ("values", 1 << 22)}


@dataclass(frozen=True, slots=True)
class TrainingFile:
    """A file as the database knows it."""

    id: str
    tenant: str
    filename: str
    purpose: str
    num_bytes: int
    num_rows: int
    created_s: int


class TrainingFiles:
    """The files of all tenants; a tenant's are reached by its name alone. max_bytes: of all of a tenant's."""

    def __init__(self, database: Database, max_bytes: int) -> None:
        self._database, self._max_bytes = database, max_bytes
        self._folder = database.folder / FILES
        make_folder(self._folder.absolute())

    def add(self, tenant: str, filename: str, purpose: str, data: bytes) -> TrainingFile:
        """Keeps a JSONL file. Raises QuotaError before it is read, ServeError that names its bad rows."""
        self._check_room(self._database.rows(USED, (tenant,))[0], len(data))
        _check_parts(data)
        id = f"file-{uuid4().hex}"
        path = self.path(id)
        self._database.keep(path, data)
        try:
            rows = len(read_table(path, filename))
            found = TrainingFile(id, tenant, filename, purpose, len(data), rows, int(time.time()))
            self._insert(found)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, DataError):
                raise ServeError(f"file: {error}", "file") from None
            raise
        return found

    def get(self, tenant: str, id: str) -> TrainingFile:
        """A file of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM files WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"No such File object: {id[:80]}")
        return TrainingFile(*rows[0])

    def list(self, tenant: str, purpose: str | None = None) -> Sequence[TrainingFile]:
        """A tenant's files, the newest first."""
        found = self._database.rows("SELECT * FROM files WHERE tenant = ? ORDER BY created_s DESC, id DESC", (tenant,))
        return [TrainingFile(*row) for row in found if purpose in (None, row["purpose"])]

    def delete(self, tenant: str, id: str) -> None:
        """Removes a file. Raises UnknownObjectError, and ConflictError for one that a job still needs."""
        self.get(tenant, id)
        with self._database.changing() as connection:
            needing = connection.execute(
                "SELECT id FROM jobs WHERE (training_file = ?1 OR validation_file = ?1) AND finished_s IS NULL", (id,)
            ).fetchone()
            if needing is not None:
                raise ConflictError(f"{id} is needed by {needing['id']}: cancel that job first, or wait for its end")
            connection.execute("DELETE FROM files WHERE id = ?", (id,))
        self.path(id).unlink(missing_ok=True)

    def path(self, id: str) -> Path:
        """Where the bytes of a file lie."""
        return self._folder / f"{id}{SUFFIX}"

    def _insert(self, file: TrainingFile) -> None:
        with self._database.changing() as connection:
            self._check_room(connection.execute(USED, (file.tenant,)).fetchone(), file.num_bytes)
            values = (file.id, file.tenant, file.filename, file.purpose, file.num_bytes, file.num_rows, file.created_s)
            connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def _check_room(self, row: DatabaseRow, more: int) -> None:
        if row["num"] >= MAX_FILES:
            raise QuotaError(f"you have {row['num']:,} files: delete some first")
        if row["used"] + more > self._max_bytes:
            raise QuotaError(
                f"your files take {row['used']:,} bytes, and {more:,} more would be over your {self._max_bytes:,}: "
                "delete some first"
            )


def _check_parts(data: bytes) -> None:
    """Raises ServeError for a file of more rows, or of more parts, than are read."""
    for mark, (what, most) in MAX_PARTS.items():
        if data.count(mark) > most:
            raise ServeError(f"file: it has more than {most:,} {what}: train on fewer rows", "file")


def read_table(path: Path, filename: str, limit: int | None = None) -> Table:
    """The rows of a file to write text by, or to prefer it, under the name that its owner knows. Raises DataError.

    limit: how many of them are read, from the first; None is all.
    """
    try:
        found = table(filename, ((number, _ours(row)) for number, row in islice(read_rows(str(path)), limit)))
    except DataError as error:
        raise DataError(str(error).replace(str(path), filename)) from None
    if not (found.row.writes or found.row.compares):
        wanted = "messages, prompt and completion, or input with preferred_output and non_preferred_output"
        raise DataError(f"{filename} has rows for {found.task}: give {wanted}")
    return found


def _ours(row: Row) -> Row:
    """A preference as OpenAI's API has it, as our own files do; any other row as it is."""
    if {*row} != {*PREFERENCE} or not isinstance(row["input"], Mapping):
        return row
    turns = {**row["input"]}
    messages, tools = turns.pop("messages", None), turns.pop("tools", None)
    said = {name: value for name, value in turns.items() if value not in (None, [], True)}  # parallel_tool_calls
    if said:
        raise DataError(f"input: {next(iter(said))} is not trained on: leave it out")
    found = {ours: messages if theirs == "input" else row[theirs] for theirs, ours in PREFERENCE.items()}
    return found if tools is None else {**found, "tools": tools}
