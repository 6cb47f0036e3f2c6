"""Scheduler: which requests run."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
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
    def weight(self) -> float:
        """The share of the rows that its tenant has, beside the others'."""

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


RECENT_S = 60.0  # how long a tenant that has nothing here counts as one that may come back
SPARE = 16  # at most one row in so many is kept free for such tenants
Q = TypeVar("Q", bound=WaitingRequest)
R = TypeVar("R", bound=ScheduledRow)


class Scheduler(Generic[Q, R]):
    """Waiting requests in one queue a tenant, running ones in rows of the cache.

    The tenant with the fewest running rows for its weight is next; among equals, the one that has waited longest. A
    request whose adapter is not there yet lets others pass. A row, one in SPARE at most, is kept free for each tenant
    that was here in the last RECENT_S and runs nothing: a long answer of another is not what it waits for.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.running: list[R] = []  # by index
        self._waiting: dict[str, deque[Q]] = {}
        self._free = list(range(max_rows))
        self._latest: dict[str, float] = {}  # when each tenant came last, those gone for long first

    @property
    def has_room(self) -> bool:
        """Whether a request waits though there is a row for it: for its adapter, then."""
        return bool(self._free and self._waiting)

    @property
    def is_shared(self) -> bool:
        """Whether more than one tenant is here, or was in the last RECENT_S."""
        return len(self._recent() | {row.request.tenant for row in self.running}) > 1

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

    def snapshot(self) -> list[Q]:
        """The requests that wait, in no order. Any thread: each queue is copied in one step."""
        return [request for queue in list(self._waiting.values()) for request in list(queue)]

    def add(self, request: Q) -> None:
        """Puts a request at the end of its tenant's queue."""
        self._waiting.setdefault(request.tenant, deque()).append(request)
        self._see(request.tenant)

    def drop(self, request: Q) -> None:
        """Takes a waiting request out, if it is there."""
        queue = self._waiting.get(request.tenant, deque())
        with suppress(ValueError):
            queue.remove(request)
        if not queue:
            self._waiting.pop(request.tenant, None)

    def admit(
        self, acquire: Callable[[Q], int | None], start: Callable[[Q, int, int], R], most: int | None = None
    ) -> list[tuple[Q, PolyveraError]]:
        """Gives rows to waiting requests while there are any; returns those that failed, and why.

        acquire: the slot of a request's adapter, None where it must wait longer. start: makes the row. most: how
        many rows of one tenant are started, None for any number.
        """
        failed: list[tuple[Q, PolyveraError]] = []
        stuck: set[int] = set()
        started: Counter[str] = Counter()
        while self._free and (request := self._next(stuck, started, most)) is not None:
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
            started[request.tenant] += 1
            request.admitted = monotonic()
            # The lowest free index, so that neighbours in the cache can attend in one call.
            insort(self.running, start(request, heapq.heappop(self._free), slot), key=lambda row: row.index)
        return failed

    def finish(self, row: R) -> None:
        """Takes a row out of the running."""
        self.running.remove(row)
        self._see(row.request.tenant)
        heapq.heappush(self._free, row.index)

    def _next(self, stuck: set[int], started: Counter[str], most: int | None) -> Q | None:
        """The first request in turn that is not stuck, of a tenant of which fewer than the most were started."""
        counts = Counter(row.request.tenant for row in self.running)
        is_open = len(self._free) > self._num_kept(counts)
        can_start = (tenant for tenant in self._waiting if most is None or started[tenant] < most)
        queues = (self._waiting[tenant] for tenant in can_start if is_open or not counts[tenant])
        firsts = [request for queue in queues if (request := _first(queue, stuck)) is not None]
        return min(firsts, key=lambda one: (counts[one.tenant] / one.weight, one.number), default=None)

    def _num_kept(self, counts: Counter[str]) -> int:
        """Rows that are for those alone who run nothing."""
        return min(self.max_rows // SPARE, len(self._recent() - counts.keys()))

    def _recent(self) -> Set[str]:
        """The tenants that came or ended something in the last RECENT_S."""
        while self._latest and monotonic() - next(iter(self._latest.values())) > RECENT_S:
            del self._latest[next(iter(self._latest))]
        return self._latest.keys()

    def _see(self, tenant: str) -> None:
        self._latest.pop(tenant, None)
        self._latest[tenant] = monotonic()


def _first(queue: Iterable[Q], stuck: set[int]) -> Q | None:
    return next((request for request in queue if request.number not in stuck), None)
