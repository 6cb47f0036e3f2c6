"""TrainingFiles: what tenants uploaded to train on, each file checked row by row before it counts as there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from sqlite3 import Connection
from sqlite3 import Row as DatabaseRow
from types import MappingProxyType
from uuid import UUID, uuid4

from polyvera.data.row_files import Row, read_rows
from polyvera.data.tables import Table, table
from polyvera.errors import ConflictError, DataError, QuotaError, ServeError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.store.durable import make_folder

FILES = "files"
PREFIX = "file-"
ID = re.compile(PREFIX + "([0-9a-f]{12})7[0-9a-f]{19}")  # with its time, in milliseconds
NEWEST_FIRST = "desc"
ORDERS: Mapping[str, tuple[str, str]] = MappingProxyType({NEWEST_FIRST: ("<", "DESC"), "asc": (">", "ASC")})
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

    def add(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        data: bytes,
        also: Callable[[Connection, str], None] | None = None,
    ) -> TrainingFile:
        """Keeps a JSONL file. Raises QuotaError before it is read, ServeError that names its bad rows.

        also: called with the file's id in the transaction that keeps it, so that both are done or neither.
        """
        self._check_room(self._database.rows(USED, (tenant,))[0], len(data))
        _check_parts(data)
        now_ms = time.time_ns() // 1_000_000
        id = f"{PREFIX}{_ordered(now_ms).hex}"
        path = self.path(id)
        self._database.keep(path, data)
        try:
            rows = len(read_table(path, filename))
            found = TrainingFile(id, tenant, filename, purpose, len(data), rows, now_ms // 1000)
            self._insert(found, also or _nothing)
        except BaseException as error:
            self._database.drop([path])
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

    def list(
        self,
        tenant: str,
        purpose: str | None = None,
        limit: int = MAX_FILES,
        after: str | None = None,
        order: str = NEWEST_FIRST,
    ) -> Sequence[TrainingFile]:
        """So many of a tenant's files. order: a key of ORDERS. Raises UnknownObjectError.

        after: the id of the last one that was seen, which may have been deleted since: its time is in it.
        """
        sign, word = ORDERS[order]
        query = "SELECT * FROM files WHERE tenant = ? AND COALESCE(?, purpose) = purpose"
        values: list[object] = [tenant, purpose]
        if after is not None:
            query += f" AND (created_s, id) {sign} (?, ?)"
            values += [self._created_s(tenant, after), after]
        rows = self._database.rows(f"{query} ORDER BY created_s {word}, id {word} LIMIT ?", [*values, limit])
        return [TrainingFile(*row) for row in rows]

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
        self._database.drop([self.path(id)])

    def path(self, id: str) -> Path:
        """Where the bytes of a file lie."""
        return self._folder / f"{id}{SUFFIX}"

    def _created_s(self, tenant: str, id: str) -> int:
        """By the id itself, or by the table for one from before ids had a time."""
        found = ID.fullmatch(id)
        return self.get(tenant, id).created_s if found is None else int(found[1], 16) // 1000

    def _insert(self, file: TrainingFile, also: Callable[[Connection, str], None]) -> None:
        with self._database.changing() as connection:
            self._check_room(connection.execute(USED, (file.tenant,)).fetchone(), file.num_bytes)
            values = (file.id, file.tenant, file.filename, file.purpose, file.num_bytes, file.num_rows, file.created_s)
            connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            also(connection, file.id)

    def _check_room(self, row: DatabaseRow, more: int) -> None:
        if row["num"] >= MAX_FILES:
            raise QuotaError(f"you have {row['num']:,} files: delete some first")
        if row["used"] + more > self._max_bytes:
            raise QuotaError(
                f"your files take {row['used']:,} bytes, and {more:,} more would be over your {self._max_bytes:,}: "
                "delete some first"
            )


def _ordered(now_ms: int) -> UUID:
    """An id that sorts by its time, as RFC 9562 has it in version 7."""
    return UUID(int=now_ms << 80 | 7 << 76 | uuid4().int & (1 << 76) - 1)


def _nothing(connection: Connection, id: str) -> None:
    """What a file is kept with, where nothing else is."""


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
