"""OperationWatch: who waits for the answer to a call, and is woken when it is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from time import monotonic

from polyvera.jobs.database import ChangeWatch
from polyvera.jobs.operation_table import OperationTable

LOOK_S, REST = 0.01, 4.0  # seconds between two looks, and how many times as long as the last one took


class OperationWatch:
    """Of the event loop's thread. It looks at the database while anyone waits, once for all of them.

    path: of the database.
    """

    def __init__(self, operations: OperationTable, path: Path) -> None:
        self._operations, self._path = operations, path
        self._waiting: Counter[str] = Counter()
        self._done: dict[str, asyncio.Event] = {}
        self._seen: set[str] = set()  # of those who wait, who was looked for since they began to
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, id: str, timeout_s: float) -> None:
        """Returns when that call has its answer, or after so long."""
        event = self._done.setdefault(id, asyncio.Event())
        self._waiting[id] += 1
        self._seen.discard(id)  # it may be there since it was last looked for
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
        watch = ChangeWatch(self._path)
        try:
            while self._done:
                started = monotonic()
                if watch.has_changed() or self._done.keys() - self._seen:
                    self._seen = {*self._done}
                    for id in await asyncio.to_thread(self._operations.done, [*self._seen]):
                        if id in self._done:
                            self._done[id].set()
                await asyncio.sleep(max(LOOK_S, REST * (monotonic() - started)))
        finally:
            watch.close()
