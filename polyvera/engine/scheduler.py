"""Scheduler: which requests run, and which of their tokens the next step computes."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Generic, Protocol, TypeVar

from polyvera.engine.generation.detokenizer import Text
from polyvera.engine.generation.request import Request
from polyvera.engine.generation.sampler import Choice
from polyvera.errors import PolyveraError


class Waiting(Protocol):
    """A request, as the queues see it. number: counted up; requests of one number wait for the same adapter."""

    admitted: float

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def number(self) -> int:
        """Which it is."""


class Running(Protocol):
    """A row, as the queues see it."""

    @property
    def place(self) -> int:
        """Where it is in the batch."""

    @property
    def request(self) -> Waiting:
        """Whose row it is."""


Q = TypeVar("Q", bound=Waiting)
R = TypeVar("R", bound=Running)


@dataclass(eq=False, slots=True)
class Row:
    """A request that runs: its row of the cache, its adapter's slot, and how far it is.

    num_computed: tokens whose keys and values are in the cache.
    """

    request: Request
    place: int
    slot: int
    choice: Choice
    text: Text
    num_computed: int = 0

    @property
    def num_left(self) -> int:
        """Tokens known and not computed: 1 while it decodes, more while its prompt is read."""
        return self.request.num_tokens - self.num_computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Some of the prompt's tokens followed by the answer's."""
        prompt, answer = self.request.prompt, self.request.answer
        split = len(prompt)
        return [*prompt[start:stop], *answer[max(start - split, 0) : max(stop - split, 0)]]


@dataclass(frozen=True, slots=True)
class Work:
    """The next tokens of a row, [start, stop)."""

    row: Row
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether all that is known of the row is then computed, so that its next token can be chosen."""
        return self.stop == self.row.request.num_tokens


class Scheduler(Generic[Q, R]):
    """Waiting requests in one queue a tenant, running ones in rows of the cache.

    The tenant with the fewest running rows is next; among equals, the one that has waited longest. A request whose
    adapter is not there yet lets others pass. chunk: tokens of prompts that one step computes at most.
    """

    def __init__(self, max_rows: int, chunk: int) -> None:
        self.max_rows, self.chunk = max_rows, chunk
        self.running: list[R] = []  # by place
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
        """Takes a waiting request out."""
        queue = self._waiting[request.tenant]
        queue.remove(request)
        if not queue:
            del self._waiting[request.tenant]

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
            # The lowest free place, so that neighbours in the cache can attend in one call.
            self.running.append(start(request, heapq.heappop(self._free), slot))
            self.running.sort(key=lambda row: row.place)
        return failed

    def work(self: Scheduler[Request, Row]) -> tuple[list[Work], list[Work]]:
        """What the next step computes: rows that decode, by place, then pieces of prompts, the oldest first."""
        decoding = [Work(row, row.num_computed, row.num_computed + 1) for row in self.running if row.num_left == 1]
        reading, left = [], self.chunk
        for row in sorted(self.running, key=lambda row: row.request.number):
            size = min(row.num_left, left)
            if row.num_left > 1 and size:
                reading.append(Work(row, row.num_computed, row.num_computed + size))
                left -= size
        return decoding, reading

    def finish(self, row: R) -> None:
        """Takes a row out of the running."""
        self.running.remove(row)
        heapq.heappush(self._free, row.place)

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
