"""RequestQueue: what other threads hand to the engine's thread between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Event, Lock
from typing import Generic, TypeVar

from polyvera.errors import BusyError, ClosedError

R = TypeVar("R")
Job = Callable[[], bool | None]


class RequestQueue(Generic[R]):
    """Requests that came, requests to cancel, and jobs for the engine's thread. Any number of threads.

    num_waiting: requests that came and neither run nor have ended, at most max_waiting. num_open: those that have not
    ended. A job is called at every step until it answers anything but False, and once more at the engine's end.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting, self.num_waiting, self.num_open = max_waiting, 0, 0
        self.is_open = False
        self.wake = Event()
        self._lock = Lock()
        self._arrived: deque[R] = deque()
        self._cancelled: deque[R] = deque()
        self._jobs: deque[Job] = deque()

    def add(self, request: R) -> None:
        """Raises BusyError where too many wait, ClosedError after close()."""
        with self._lock:
            if not self.is_open:
                raise ClosedError("the engine is stopping, or has stopped: it takes no new requests")
            if self.num_waiting >= self.max_waiting:
                raise BusyError(f"{self.num_waiting} requests wait already, which is the maximum: try again later")
            self.num_waiting += 1
            self.num_open += 1
            self._arrived.append(request)
        self.wake.set()

    def cancel(self, request: R) -> None:
        """Asks for the end of a request."""
        self._cancelled.append(request)
        self.wake.set()

    def do(self, job: Job) -> None:
        """Asks for a job. Raises ClosedError before start and after close()."""
        with self._lock:
            if not self.is_open:
                raise ClosedError("the engine is not running")
            self._jobs.append(job)
        self.wake.set()

    def close(self) -> None:
        """Takes no more requests and jobs."""
        with self._lock:
            self.is_open = False

    def left(self) -> None:
        """Counts a request as no longer waiting."""
        with self._lock:
            self.num_waiting -= 1

    def ended(self) -> None:
        """Counts a request as ended."""
        with self._lock:
            self.num_open -= 1

    def arrived(self) -> list[R]:
        """The requests that came since the last call."""
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def cancelled(self) -> list[R]:
        """The requests to cancel since the last call."""
        return [self._cancelled.popleft() for _ in range(len(self._cancelled))]

    def do_jobs(self) -> None:
        """Calls every job once; those that answer False stay."""
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            if job() is False:
                self._jobs.append(job)
