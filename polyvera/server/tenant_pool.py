"""TenantPool: threads for work that a request brings, of which each tenant has a share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from polyvera.errors import BusyError

NUM_THREADS = 16
SHARE = 4  # of works that wait for files
COMPUTING_SHARE = max(1, (os.cpu_count() or 1) // 8)  # of works that compute: the cores are the engine's
MAX_WAITING = 1024
WAIT_S = 30.0
T = TypeVar("T")


@dataclass(eq=False)
class TenantLine:
    """One tenant's turn. num_in: its works that wait or run."""

    turns: asyncio.Semaphore
    num_in: int = 0


class TenantPool:
    """Threads of one event loop. A tenant has its share of them at a time; more of its works wait in its own line.

    A work that waits is dropped with its caller; one that runs keeps its turn until it ends.

    share: threads of one tenant at a time.
    """

    def __init__(self, share: int = SHARE) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, "polyvera-tenant")
        self._share = share
        self._lines: dict[str, TenantLine] = {}

    async def run(self, tenant: str, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What the work returns. Raises BusyError for a line that is too long or does not move."""
        line = self._lines.setdefault(tenant, TenantLine(asyncio.Semaphore(self._share)))
        if line.num_in >= MAX_WAITING:
            raise BusyError(f"{line.num_in} requests of this tenant wait to be read: try again later")
        line.num_in += 1
        try:
            await asyncio.wait_for(line.turns.acquire(), WAIT_S)
        except TimeoutError:
            self._leave(tenant, line)
            raise BusyError(f"{line.num_in} requests of this tenant wait, for over {WAIT_S:g} s: try again") from None
        except BaseException:
            self._leave(tenant, line)
            raise
        return await asyncio.wrap_future(self._begun(tenant, line, partial(work, *args, **kwargs)))

    def close(self) -> None:
        """Ends the threads when what runs has ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begun(self, tenant: str, line: TenantLine, work: Callable[[], T]) -> Future[T]:
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end, tenant, line)

        try:
            future = self._threads.submit(work)
        except BaseException:
            self._end(tenant, line)
            raise
        future.add_done_callback(ended)
        return future

    def _end(self, tenant: str, line: TenantLine) -> None:
        line.turns.release()
        self._leave(tenant, line)

    def _leave(self, tenant: str, line: TenantLine) -> None:
        line.num_in -= 1
        if not line.num_in:
            self._lines.pop(tenant, None)
