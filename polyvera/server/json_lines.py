"""JsonLines: one JSON object a line, to a file or to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Lock, Thread
from typing import IO, Any

from polyvera.errors import ServeError

MAX_QUEUED = 8192


class JsonLines:
    """Any number of threads. path: is appended to; None is standard output. Raises ServeError for a wrong path."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = Lock()
        try:
            self._file: IO[str] = sys.stdout if path is None else path.open("a", encoding="utf-8")
        except OSError as error:
            raise ServeError(f"{path} cannot be written: {error.strerror}") from None

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Writes them at once. Raises OSError where there is no room."""
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        with self._lock:
            self._file.write(text)
            self._file.flush()


class QueuedLines:
    """JsonLines that wait for nobody: a thread writes them. What does not fit is counted, and told with the next."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines, self._rows, self._num_lost = lines, Queue[Mapping[str, Any]](MAX_QUEUED), 0
        Thread(target=self._write_for_ever, name="polyvera-lines", daemon=True).start()

    def put(self, row: Mapping[str, Any]) -> None:
        """Takes a row to be written soon."""
        try:
            self._rows.put_nowait(row if not self._num_lost else {**row, "lost_before": self._num_lost})
            self._num_lost = 0
        except Full:
            self._num_lost += 1

    def flush(self) -> None:
        """Writes what is queued."""
        rows: list[Mapping[str, Any]] = []
        try:
            while True:
                rows.append(self._rows.get_nowait())
        except Empty:
            self._write(rows)

    def _write_for_ever(self) -> None:
        while True:
            self._write([self._rows.get()])
            self.flush()

    def _write(self, rows: list[Mapping[str, Any]]) -> None:
        try:
            self._lines.write(*rows)
        except (OSError, ValueError):  # no room, or closed: these lines are lost, and the server goes on
            self._num_lost += len(rows)
