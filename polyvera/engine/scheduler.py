"""Scheduler: which requests run."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Generic, Protocol, TypeVar

from polyvera.errors import PolyveraError


class WaitingRequest(Protocol):
    """A request, as the queues see it. number: counted up; requests of one number wait for the same adapter."""

    admitted: float

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def number(self) -> int:
        """Which it is."""


class ScheduledRow(Protocol):
    """A row, as the queues see it."""

    @property
    def index(self) -> int:
        """Where it is in the batch."""

    @property
    def request(self) -> WaitingRequest:
        """Whose row it is."""


Q = TypeVar("Q", bound=WaitingRequest)
R = TypeVar("R", bound=ScheduledRow)


class Scheduler(Generic[Q, R]):
    """Waiting requests in one queue a tenant, running ones in rows of the cache.

    The tenant with the fewest running rows is next; among equals, the one that has waited longest. A request whose
    adapter is not there yet lets others pass.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.running: list[R] = []  # by index
        self._waiting: dict[str, deque[Q]] = {}
        self._free = list(range(max_rows))

    @property
    def has_room(self) -> bool:
        """Whether a request waits though there is a row for it: for its adapter, then."""
        return bool(self._free and self._waiting)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    def waiting(self) -> Iterator[Q]:
        """The requests that wait, each tenant's in turn, in the order of their arrival."""
        queues = [iter(queue) for queue in self._waiting.values()]
        while queues:
            for queue in list(queues):
                request = next(queue, None)
                if request is None:
                    queues.remove(queue)
                else:
                    yield request

    def add(self, request: Q) -> None:
        """Puts a request at the end of its tenant's queue."""
        self._waiting.setdefault(request.tenant, deque()).append(request)

    def drop(self, request: Q) -> None:
        """Takes a waiting request out, if it is there."""
        queue = self._waiting.get(request.tenant, deque())
        with suppress(ValueError):
            queue.remove(request)
        if not queue:
            self._waiting.pop(request.tenant, None)

    def admit(
        self, acquire: Callable[[Q], int | None], start: Callable[[Q, int, int], R]
    ) -> list[tuple[Q, PolyveraError]]:
        """Gives rows to waiting requests while there are any; returns those that failed, and why.

        acquire: the slot of a request's adapter, None where it must wait longer. start: makes the row.
        """
        failed: list[tuple[Q, PolyveraError]] = []
        stuck: set[int] = set()
        while self._free and (request := self._next(stuck)) is not None:
            try:
                slot = acquire(request)
            except PolyveraError as error:
                self.drop(request)
                failed.append((request, error))
                continue
            if slot is None:
                stuck.add(request.number)
                continue
            self.drop(request)
            request.admitted = monotonic()
            # The lowest free index, so that neighbours in the cache can attend in one call.
            insort(self.running, start(request, heapq.heappop(self._free), slot), key=lambda row: row.index)
        return failed

    def finish(self, row: R) -> None:
        """Takes a row out of the running."""
        self.running.remove(row)
        heapq.heappush(self._free, row.index)

    def _next(self, stuck: set[int]) -> Q | None:
        """The first request in turn that is not stuck."""
        counts = dict.fromkeys(self._waiting, 0)
        for row in self.running:
            if row.request.tenant in counts:
                counts[row.request.tenant] += 1
        firsts = [_first(queue, stuck) for queue in self._waiting.values()]
        open_ = [request for request in firsts if request is not None]
        return min(open_, key=lambda request: (counts[request.tenant], request.number), default=None)


def _first(queue: Iterable[Q], stuck: set[int]) -> Q | None:
    return next((request for request in queue if request.number not in stuck), None)
