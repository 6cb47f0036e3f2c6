"""UsageStore: requests and tokens by day, tenant, key and adapter, in an SQLite file that outlives the server."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from polyvera.errors import ServeError

log = logging.getLogger(__name__)
GROUPS = ("day", "tenant", "key", "adapter")
SUMS = ("requests", "prompt_tokens", "completion_tokens")
WRITE_S = 1.0
KEPT_DAYS = 400
BUSY_MS = 5_000
TABLE = f"""CREATE TABLE IF NOT EXISTS usage (
    {", ".join(f"{name} TEXT NOT NULL" for name in GROUPS)}, {", ".join(f"{name} INTEGER NOT NULL" for name in SUMS)},
    PRIMARY KEY ({", ".join(GROUPS)})) WITHOUT ROWID"""
ADD = f"""INSERT INTO usage VALUES ({", ".join("?" * len(GROUPS + SUMS))}) ON CONFLICT DO UPDATE SET
    {", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)}"""
Group = tuple[str, str, str, str]  # a value for each of GROUPS


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows are asked for. tenant: None is all. since, until: days, both included. groups: of GROUPS."""

    tenant: str | None
    since: date = date.min
    until: date = date.max
    groups: tuple[str, ...] = ("day", "tenant", "adapter")
    limit: int = 1000

    @property
    def sql(self) -> tuple[str, list[Any]]:
        """The statement and its values; names come from GROUPS alone."""
        names = ", ".join(name for name in GROUPS if name in self.groups)
        sums = ", ".join(f"SUM({name})" for name in SUMS)
        where = "day BETWEEN ? AND ?" + ("" if self.tenant is None else " AND tenant = ?")
        values = [str(self.since), str(self.until), *([] if self.tenant is None else [self.tenant]), self.limit]
        return f"SELECT {names}, {sums} FROM usage WHERE {where} GROUP BY {names} ORDER BY {names} LIMIT ?", values


class UsageStore:
    """Any number of threads. add() never waits for the disk: a thread of its own writes every WRITE_S.

    path: of the file; None keeps the counts in memory, as long as this object lives. Several servers of one machine
    may share a file. Raises ServeError for a file that cannot be opened as a database.
    """

    def __init__(self, path: Path | None = None, today: Callable[[], date] = lambda: datetime.now(UTC).date()) -> None:
        self.path, self._today = path, today
        self._lock, self._file_lock, self._closing = Lock(), Lock(), Event()
        self._new: dict[Group, Counter[str]] = {}  # not written yet
        self._writer: Thread | None = None
        try:
            self._file = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._open()
        except sqlite3.Error as error:
            raise ServeError(f"the file of usage {path} cannot be opened: {error}") from None

    def add(self, tenant: str, key: str, adapter: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts one request. adapter: its name, '' for the base."""
        with self._lock:
            self._roll_over()
            row = self._new.setdefault((str(self._day), tenant, key, adapter), Counter())
            row.update(requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
            self._by_key[key] += prompt_tokens + completion_tokens
            if self._writer is None and not self._closing.is_set():
                self._writer = Thread(target=self._write_until_closed, name="polyvera-usage", daemon=True)
                self._writer.start()

    def tokens_today(self, key: str) -> int:
        """Of prompts and answers, with one key, since midnight (UTC)."""
        with self._lock:
            self._roll_over()
            return self._by_key[key]

    def rows(self, query: UsageQuery) -> list[dict[str, Any]]:
        """The sums of each group, in order. Waits for the disk."""
        self.write()
        statement, values = query.sql
        names = [name for name in GROUPS if name in query.groups] + list(SUMS)
        with self._file_lock:
            found = self._file.execute(statement, values).fetchall()
        return [dict(zip(names, row, strict=True)) for row in found]

    def write(self) -> None:
        """Writes what is new; it stays in memory while the disk takes nothing."""
        with self._file_lock:
            with self._lock:
                new, self._new = self._new, {}
            try:
                self._insert(new)
            except sqlite3.Error as error:
                log.error("usage is not written to %s yet: %s", self.path, error)
                with self._lock:
                    for group, row in new.items():
                        self._new.setdefault(group, Counter()).update(row)

    def close(self) -> None:
        """Writes what is new; what is added later is lost."""
        self._closing.set()
        if self._writer is not None:
            self._writer.join()
        self.write()

    def _open(self) -> None:
        self._file.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.execute(TABLE)
        self._day = self._today()
        self._file.execute("DELETE FROM usage WHERE day < ?", [str(self._day - timedelta(days=KEPT_DAYS))])
        used = "SELECT key, SUM(prompt_tokens + completion_tokens) FROM usage WHERE day = ? GROUP BY key"
        self._by_key: Counter[str] = Counter(dict(self._file.execute(used, [str(self._day)])))

    def _insert(self, new: dict[Group, Counter[str]]) -> None:
        if new:
            rows = [(*group, *(row[name] for name in SUMS)) for group, row in new.items()]
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")
                self._file.executemany(ADD, rows)

    def _roll_over(self) -> None:
        if self._day != self._today():
            self._day = self._today()
            self._by_key.clear()

    def _write_until_closed(self) -> None:
        while not self._closing.wait(WRITE_S):
            self.write()


def parse_groups(text: str) -> tuple[str, ...]:
    """`day,adapter` as groups. Raises ServeError for what is none."""
    groups = tuple(one.strip() for one in text.split(","))
    unknown = [one for one in groups if one not in GROUPS]
    if unknown:
        raise ServeError(f"group_by={unknown[0][:40]!r} must be one of: {', '.join(GROUPS)}", "group_by")
    return groups


def parse_day(text: str, param: str) -> date:
    """`2026-11-27`. Raises ServeError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ServeError(f"{param}={text[:40]!r} is not a day such as 2026-11-27", param) from None


def usage_path(store: str) -> Path | None:
    """Where a server keeps its usage unless it is told: beside the folder of its store, nowhere for a remote one."""
    if "://" in store:
        return None
    folder = Path(store).absolute()
    return folder.with_name(f"{folder.name}.usage.sqlite")


def open_usage(path: Path | None, store: str | None) -> UsageStore:
    """The usage at a path, or by default at usage_path(); in memory, with a warning, where that cannot be written.

    Raises ServeError for a given path that cannot.
    """
    if path is not None or store is None:
        return UsageStore(path)
    chosen = usage_path(store)
    try:
        return UsageStore(chosen)
    except ServeError as error:
        log.warning("%s; usage is counted in memory until the server stops: give --usage FILE", error)
        return UsageStore()
