"""UploadTable: files that come in parts, each kept until all of them are there. A tenant reaches its own alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from sqlite3 import Connection
from uuid import uuid4

from polyvera.errors import ConflictError, QuotaError, ServeError, UnknownObjectError
from polyvera.jobs.database import Database
from polyvera.jobs.training_files import TrainingFile, TrainingFiles
from polyvera.store.durable import make_folder

FOLDER = "uploads"
PENDING, COMPLETED, CANCELLED = "pending", "completed", "cancelled"
LIFE_S = 3600
MAX_PARTS, MAX_PENDING = 1000, 100
OPEN = "tenant = ? AND status = 'pending' AND expires_s > ?"
CAME = f"SELECT COALESCE(SUM(num_bytes), 0) FROM parts WHERE upload IN (SELECT id FROM uploads WHERE {OPEN})"


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as the database knows it. num_bytes: of all parts, as its creator said. file: what it became."""

    id: str
    tenant: str
    filename: str
    purpose: str
    num_bytes: int
    created_s: int
    expires_s: int
    status: str
    file: str | None


@dataclass(frozen=True, slots=True)
class UploadPart:
    """A part that has come."""

    id: str
    upload: str
    num_bytes: int
    created_s: int


class UploadTable:
    """Uploads in a database, which become its files. max_bytes: of all of a tenant's."""

    def __init__(self, database: Database, files: TrainingFiles, max_bytes: int) -> None:
        self._database, self._files, self._max_bytes = database, files, max_bytes
        self._folder = database.folder / FOLDER
        make_folder(self._folder.absolute())

    def create(self, tenant: str, filename: str, purpose: str, num_bytes: int) -> Upload:
        """Begins an upload of so many bytes. Raises QuotaError."""
        now = int(time.time())
        made = Upload(f"upload_{uuid4().hex}", tenant, filename, purpose, num_bytes, now, now + LIFE_S, PENDING, None)
        with self._database.changing() as connection:
            old = self._forget_old(connection, now)
            if num_bytes > self._max_bytes:
                raise QuotaError(f"{num_bytes:,} bytes are more than the {self._max_bytes:,} that you may have")
            count = connection.execute(f"SELECT COUNT(*) FROM uploads WHERE {OPEN}", (tenant, now)).fetchone()[0]
            if count >= MAX_PENDING:
                raise QuotaError(f"{count} of your uploads are pending: complete or cancel some first")
            values = (made.id, tenant, filename, purpose, num_bytes, now, made.expires_s, PENDING, None)
            connection.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self._database.drop(old)
        return made

    def get(self, tenant: str, id: str) -> Upload:
        """An upload of that tenant's. Raises UnknownObjectError."""
        rows = self._database.rows("SELECT * FROM uploads WHERE id = ? AND tenant = ?", (id, tenant))
        if not rows:
            raise UnknownObjectError(f"No such Upload object: {id[:80]}")
        return Upload(*rows[0])

    def add_part(self, tenant: str, id: str, data: bytes) -> UploadPart:
        """Keeps the next part. Raises ConflictError for an upload that is not pending, ServeError, QuotaError."""
        part = UploadPart(f"part_{uuid4().hex}", id, len(data), int(time.time()))
        self._check_room(self._pending(tenant, id), self._parts(id), len(data))
        self._database.keep(self._path(part.id), data)
        try:
            with self._database.changing() as connection:
                self._check_room(self._pending(tenant, id), self._parts(id), len(data))  # as it is by now
                values = (part.id, id, part.num_bytes, part.created_s)
                connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", values)
        except BaseException:
            self._database.drop([self._path(part.id)])
            raise
        return part

    def complete(self, tenant: str, id: str, parts: Sequence[str], checksum: str | None) -> tuple[Upload, TrainingFile]:
        """Makes a file of the parts, in that order. Raises ConflictError, ServeError for other bytes than were said."""
        known = {part.id: part for part in self._parts(id)}
        upload = self._pending(tenant, id)  # after them: whoever ends it takes its parts away
        unknown = next((part for part in parts if part not in known), None)
        if unknown is not None or len({*parts}) != len(parts):
            raise ServeError(f"part_ids: {(unknown or 'a part that stands twice')[:80]} is no part of it", "part_ids")
        num_bytes = sum(known[part].num_bytes for part in parts)
        if num_bytes != upload.num_bytes:
            raise ServeError(f"the parts have {num_bytes:,} bytes, and bytes said {upload.num_bytes:,}", "part_ids")
        data = b"".join(self._bytes(id, part) for part in parts)
        if checksum is not None and md5(data, usedforsecurity=False).hexdigest() != checksum.lower():
            raise ServeError("md5: the parts have another checksum: send them again", "md5")
        ended: list[Path] = []

        def end(connection: Connection, file: str) -> None:
            ended.extend(self._end(connection, upload, COMPLETED, file))

        file = self._files.add(tenant, upload.filename, upload.purpose, data, end)
        self._database.drop(ended)
        return self.get(tenant, id), file

    def cancel(self, tenant: str, id: str) -> Upload:
        """Forgets the parts. Raises ConflictError for an upload that is not pending."""
        upload = self._pending(tenant, id)
        with self._database.changing() as connection:
            ended = self._end(connection, upload, CANCELLED, None)
        self._database.drop(ended)
        return self.get(tenant, id)

    def _pending(self, tenant: str, id: str) -> Upload:
        upload = self.get(tenant, id)
        if upload.status != PENDING or upload.expires_s <= time.time():
            status = upload.status if upload.status != PENDING else "expired"
            raise ConflictError(f"{id} is {status}: begin another upload")
        return upload

    def _parts(self, id: str) -> list[UploadPart]:
        return [UploadPart(*row) for row in self._database.rows("SELECT * FROM parts WHERE upload = ?", (id,))]

    def _check_room(self, upload: Upload, parts: Sequence[UploadPart], more: int) -> None:
        if len(parts) >= MAX_PARTS or not more:
            raise ServeError(f"data: an upload has at most {MAX_PARTS} parts, each of some bytes", "data")
        if sum(part.num_bytes for part in parts) + more > upload.num_bytes:
            raise ServeError(f"data: the parts are more than the {upload.num_bytes:,} bytes that were said", "data")
        came = self._database.rows(CAME, (upload.tenant, int(time.time())))[0][0]
        if came + more > self._max_bytes:
            raise QuotaError(f"your pending parts take {came:,} of your {self._max_bytes:,} bytes: complete some first")

    def _end(self, connection: Connection, upload: Upload, status: str, file: str | None) -> list[Path]:
        """What no row names once that is kept. Raises ConflictError where another request has ended it meanwhile."""
        self._pending(upload.tenant, upload.id)
        connection.execute("UPDATE uploads SET status = ?, file = ? WHERE id = ?", (status, file, upload.id))
        return self._forget_parts(connection, upload.id)

    def _forget_old(self, connection: Connection, now: int) -> list[Path]:
        """Those that expired long ago, of all tenants."""
        rows = connection.execute("SELECT id FROM uploads WHERE expires_s < ?", (now - LIFE_S,)).fetchall()
        found = [path for row in rows for path in self._forget_parts(connection, row["id"])]
        connection.execute("DELETE FROM uploads WHERE expires_s < ?", (now - LIFE_S,))
        return found

    def _forget_parts(self, connection: Connection, upload: str) -> list[Path]:
        """Their files, which are needed until that is kept."""
        rows = connection.execute("SELECT id FROM parts WHERE upload = ?", (upload,)).fetchall()
        connection.execute("DELETE FROM parts WHERE upload = ?", (upload,))
        return [self._path(row["id"]) for row in rows]

    def _bytes(self, id: str, part: str) -> bytes:
        try:
            return self._path(part).read_bytes()
        except FileNotFoundError:
            raise ConflictError(f"{id} was ended by another request: begin another upload") from None

    def _path(self, part: str) -> Path:
        return self._folder / part
