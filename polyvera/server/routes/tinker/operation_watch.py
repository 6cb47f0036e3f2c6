"""OperationWatch: who waits for the answer to a call, and is woken when it is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from polyvera.jobs.database import ChangeWatch
from polyvera.jobs.operation_table import OperationTable

LOOK_S = 0.01


class OperationWatch:
    """Of the event loop's thread. It looks at the database while anyone waits, once for all of them.

    path: of the database.
    """

    def __init__(self, operations: OperationTable, path: Path) -> None:
        self._operations, self._path = operations, path
        self._waiting: Counter[str] = Counter()
        self._done: dict[str, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, id: str, timeout_s: float) -> None:
        """Returns when that call has its answer, or after so long."""
        event = self._done.setdefault(id, asyncio.Event())
        self._waiting[id] += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return
        finally:
            self._waiting[id] -= 1
            if not self._waiting[id]:
                del self._waiting[id], self._done[id]

    async def _look(self) -> None:
        watch, seen = ChangeWatch(self._path), set[str]()
        try:
            while self._done:
                new = self._done.keys() - seen
                if watch.has_changed() or new:
                    seen = {*self._done}
                    for id in await asyncio.to_thread(self._operations.done, seen):
                        if id in self._done:
                            self._done[id].set()
                await asyncio.sleep(LOOK_S)
        finally:
            watch.close()
