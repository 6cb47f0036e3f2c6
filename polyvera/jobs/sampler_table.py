"""SamplerTable: the sessions that sample, each with the base or with one adapter. A tenant reaches its own alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from polyvera.errors import UnknownObjectError
from polyvera.jobs.database import Database


@dataclass(frozen=True, slots=True)
class SamplingSession:
    """Such a session as the database knows it. path: of the weights. adapter: their reference; None is the base."""

    id: str
    tenant: str
    session: str
    path: str | None
    adapter: str | None
    created_s: int


class SamplerTable:
    """Sampling sessions in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, session: str, number: int, path: str | None, adapter: str | None) -> SamplingSession:
        """Opens one; asked for twice, it is the same. Raises UnknownObjectError for a session of nobody's."""
        id = sampler_id(session, number)
        given = SamplingSession(id, tenant, session, path, adapter, int(time.time()))
        with self._database.changing() as connection:
            query = "SELECT 1 FROM sessions WHERE id = ? AND tenant = ? AND ended_s IS NULL"
            if connection.execute(query, (session, tenant)).fetchone() is None:
                raise UnknownObjectError(f"there is no session {session[:80]!r}, or it has ended")
            values = (id, tenant, session, path, adapter, given.created_s)
            connection.execute("INSERT OR IGNORE INTO samplers VALUES (?, ?, ?, ?, ?, ?)", values)
        return self.get(tenant, id)

    def get(self, tenant: str, id: str) -> SamplingSession:
        """A sampling session of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM samplers WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"there is no sampling session {id[:120]!r}")
        return SamplingSession(*rows[0])

    def of_session(self, session: str) -> Sequence[str]:
        """Ids of those that a session opened."""
        query = "SELECT id FROM samplers WHERE session = ? ORDER BY created_s LIMIT 10000"
        return [row["id"] for row in self._database.rows(query, (session,))]


def sampler_id(session: str, number: int) -> str:
    """The id of a session's sampling session."""
    return f"{session}:sample:{number}"
