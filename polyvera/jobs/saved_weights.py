"""WeightsTable: what runs saved, for training to go on from or to sample with. A tenant reaches its own alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from sqlite3 import Connection, Row

from polyvera.errors import ConflictError, QuotaError, UnknownObjectError
from polyvera.jobs.database import Database, decoded

SCHEME = "tinker://"
TRAINING, SAMPLER = "weights", "sampler_weights"
KEPT = "FROM weights WHERE tenant = ? AND (expires_s IS NULL OR expires_s > ?)"
USED = f"SELECT COALESCE(SUM(num_bytes), 0) {KEPT}"
NAMED = f"{KEPT} AND is_named = 1"


@dataclass(frozen=True, slots=True)
class SavedWeights:
    """Weights as the database knows them.

    path: tinker://RUN/KIND/NAME. seq: the call that saved them. file: of a run's whole state, beside the database.
    adapter: the reference of what can be sampled with. is_named: whether their name was their tenant's choice.
    """

    path: str
    tenant: str
    run: str
    seq: int
    kind: str
    name: str
    file: str | None
    adapter: str | None
    num_bytes: int
    method: str
    rank: int
    metadata: Mapping[str, str]
    created_s: int
    expires_s: int | None = None
    is_named: bool = True

    @classmethod
    def of(cls, row: Row) -> SavedWeights:
        """A row of the table of weights."""
        return cls(**decoded(row, "metadata") | {"is_named": bool(row["is_named"])})

    @property
    def checkpoint(self) -> str:
        """Its name within its run."""
        return f"{self.kind}/{self.name}"


class WeightsTable:
    """Weights in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, tenant: str, path: str) -> SavedWeights:
        """A tenant's weights. Raises UnknownObjectError."""
        rows = self._database.rows(f"SELECT * {KEPT} AND path = ?", (tenant, int(time.time()), path))
        if not rows:
            raise UnknownObjectError(f"there are no weights {path[:200]!r}")
        return SavedWeights.of(rows[0])

    def list(self, tenant: str, run: str | None, limit: int, offset: int) -> tuple[Sequence[SavedWeights], int]:
        """So much of what a tenant, or one of its runs, saved under a name, the newest first, and how much in all."""
        of_run, values = ("", []) if run is None else (" AND run = ?", [run])
        given = [tenant, int(time.time()), *values]
        total = self._database.rows(f"SELECT COUNT(*) AS num {NAMED}{of_run}", given)[0]["num"]
        query = f"SELECT * {NAMED}{of_run} ORDER BY rowid DESC LIMIT ? OFFSET ?"
        return [SavedWeights.of(row) for row in self._database.rows(query, [*given, limit, offset])], total

    def last(self, tenant: str, run: str) -> Sequence[SavedWeights]:
        """What a run saved last under a name, of each kind."""
        newest = f"SELECT MAX(rowid) {NAMED} AND run = ? GROUP BY kind"
        rows = self._database.rows(f"SELECT * FROM weights WHERE rowid IN ({newest})", (tenant, int(time.time()), run))
        return [SavedWeights.of(row) for row in rows]

    def expire(self, tenant: str, path: str, expires_s: int | None) -> None:
        """Says when weights are to be removed, now for at once. Raises UnknownObjectError."""
        self.get(tenant, path)
        with self._database.changing() as connection:
            connection.execute("UPDATE weights SET expires_s = ? WHERE path = ?", (expires_s, path))

    def add(self, weights: SavedWeights, max_bytes: int, sampler: str | None = None, *, replace: bool = False) -> None:
        """Keeps what a run saved. sampler: the session that samples with it. A call that is made again changes nothing.

        Raises ConflictError for a name that is taken, QuotaError.
        """
        with self._database.changing() as connection:
            given = (weights.tenant, int(time.time()))
            row = connection.execute(f"SELECT * {KEPT} AND path = ?", (*given, weights.path)).fetchone()
            if row is not None and row["seq"] != weights.seq and not replace:
                raise ConflictError(f"{weights.path} is saved already: choose another name, or overwrite it")
            used = connection.execute(USED, given).fetchone()[0] - (0 if row is None else row["num_bytes"])
            if used + weights.num_bytes > max_bytes:
                raise QuotaError(f"what you saved takes {used:,} bytes of your {max_bytes:,}: delete some of it first")
            _insert(connection, weights)
            if sampler is not None:
                add_sampler(connection, sampler, weights)

    def former(self, path: str) -> SavedWeights | None:
        """What is saved under a path, though it may have expired; None where nothing is."""
        rows = self._database.rows("SELECT * FROM weights WHERE path = ?", (path,))
        return SavedWeights.of(rows[0]) if rows else None

    def unwanted(self, num_kept: int) -> Sequence[SavedWeights]:
        """What has expired, and what no name was given to but for the last of each run."""
        older = """
        SELECT * FROM weights WHERE expires_s <= ? OR (is_named = 0 AND (
            (SELECT ended_s FROM runs WHERE runs.id = weights.run) IS NOT NULL OR
            (SELECT COUNT(*) FROM weights AS later WHERE later.run = weights.run AND later.is_named = 0
                AND later.seq > weights.seq) >= ?)) LIMIT 100
        """
        return [SavedWeights.of(row) for row in self._database.rows(older, (int(time.time()), num_kept))]

    def remove(self, path: str) -> None:
        """Forgets weights."""
        with self._database.changing() as connection:
            connection.execute("DELETE FROM weights WHERE path = ?", (path,))


def _insert(connection: Connection, weights: SavedWeights) -> None:
    names = [field.name for field in fields(weights)]
    values = {**asdict(weights), "metadata": json.dumps(dict(weights.metadata))}
    marks = ", ".join("?" * len(names))
    query = f"INSERT OR REPLACE INTO weights ({', '.join(names)}) VALUES ({marks})"
    connection.execute(query, [values[name] for name in names])


def add_sampler(connection: Connection, id: str, weights: SavedWeights) -> None:
    """Opens a session that samples with weights."""
    session = id.partition(":")[0]
    values = (id, weights.tenant, session, weights.path, weights.adapter, weights.created_s)
    connection.execute("INSERT OR REPLACE INTO samplers VALUES (?, ?, ?, ?, ?, ?)", values)


def path_of(run: str, kind: str, name: str) -> str:
    """Where a run's weights of that name are."""
    return f"{SCHEME}{run}/{kind}/{name}"
