"""EngineCore: the steps of an engine, in its own thread: schedule, forward, sample, commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.adapter_loader import Observe
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.engine.step_budget import StepBudget
from polyvera.errors import EngineError, PolyveraError

log = logging.getLogger(__name__)
MAX_FAILURES = 3
LOOK_AHEAD = 64
CANCEL_S = 0.02  # of a step, for requests to cancel: rows to clear may be long


class Workload(Protocol):
    """What differs between writing text and reading it. Batches, and what comes of them, are its own.

    A request is scheduled in parts: a prompt as a whole, each of several texts on its own. A part knows its `whole`,
    `adapter`, `tenant`, `number` and `num_tokens`. All methods are called in the engine's thread.
    """

    scheduler: Scheduler[Any, Any]
    totals: dict[str, int]

    def parts(self, request: Any) -> Sequence[Any]:
        """What is scheduled of a request that has come."""

    def acquire(self, part: Any) -> int | None:
        """The slot of its adapter, None while that is being loaded. Raises PolyveraError."""

    def start(self, part: Any, index: int, slot: int) -> Any:
        """The row of a part that runs from now on."""

    def batches(self, most: int | None) -> Iterable[Any]:
        """What the running rows compute in this step. most: rows and tokens of it, None for any number."""

    def size(self, batch: Any) -> int:
        """How many tokens a batch computes."""

    def rows(self, batch: Any) -> Iterable[Any]:
        """The rows of a batch."""

    def forward(self, batch: Any) -> Any:
        """A batch through the model."""

    def sample(self, batch: Any, output: Any) -> Any:
        """What the forward means for each row."""

    def commit(self, batch: Any, samples: Any) -> None:
        """Hands it to the callers, and ends what is complete."""

    def end(self, request: Any, error: PolyveraError | None) -> None:
        """Ends a request wherever it is, cancelled where there is no error; nothing where it has ended."""


class EngineCore:
    """One step after the other. Nothing of it is touched by another thread, save stats() and is_busy.

    limits: with chunk and max_context as numbers.
    """

    def __init__(
        self, workload: Workload, adapters: AdapterCache, queue: RequestQueue[Any], limits: Limits, observe: Observe
    ) -> None:
        self.workload, self._scheduler = workload, workload.scheduler
        self._adapters, self._queue, self._limits, self._observe = adapters, queue, limits, observe
        self._num_failures = 0
        self._budget = StepBudget(limits.max_rows + (limits.chunk or 1))

    @property
    def is_busy(self) -> bool:
        """Whether a request has come and its end has not been reported."""
        return self._queue.num_open > 0

    def step(self) -> bool:
        """One step; whether there was anything to compute. Raises the last of several failures in a row."""
        started, size = monotonic(), 0
        for batch in self._schedule():
            size += self.workload.size(batch)
            try:
                output = self.workload.forward(batch)
                samples = self.workload.sample(batch, output)
                self.workload.commit(batch, samples)
                self._num_failures = 0
            except Exception as error:
                self._fail(batch, error)
        if size:
            self._observe("step_s", monotonic() - started)
            if self._scheduler.is_shared:
                self._budget.took(monotonic() - started, size)
        return size > 0

    def end_all(self, error: PolyveraError | None) -> None:
        """Ends every request, those that wait too; cancelled where there is no error."""
        self._take_in()
        parts = [*(row.request for row in self._scheduler.running), *self._scheduler.waiting()]
        for request in {id(part.whole): part.whole for part in parts}.values():
            self.workload.end(request, error)
        self._queue.do_jobs()

    def stats(self) -> EngineStats:
        """What runs, waits and is resident at this moment. Any thread."""
        running = tuple(
            RunningRequest(str(row.request.adapter or ""), row.request.tenant, row.request.num_tokens)
            for row in list(self._scheduler.running)
        )
        totals = {**self.workload.totals, **self._adapters.totals}
        waiting = tuple({str(part.adapter) for part in self._scheduler.snapshot() if part.adapter is not None})
        resident = self._adapters.snapshot()
        return EngineStats(running, self._queue.num_waiting, resident, self._limits.num_slots, totals, waiting)

    # --- the parts of a step ---

    def _schedule(self) -> Iterable[Any]:
        """Takes in what has come, and gives free rows to the requests that wait."""
        self._adapters.collect()
        cancelled = self._queue.cancelled()  # first: whoever is cancelled has arrived by then
        self._take_in()
        self._cancel(cancelled)
        self._queue.do_jobs()
        most = self._budget.most if self._scheduler.is_shared else None
        self._admit(most)
        if self._scheduler.has_room and self._adapters.wait_briefly():
            self._admit(most)
        for _, part in zip(range(LOOK_AHEAD), self._scheduler.waiting(), strict=False):
            self._adapters.prefetch(part.adapter)
        return self.workload.batches(most)

    def _take_in(self) -> None:
        for request in self._queue.arrived():
            for part in self.workload.parts(request):
                self._scheduler.add(part)

    def _cancel(self, requests: Sequence[Any]) -> None:
        """Ends them; those that are left when the time is over at the next step."""
        end = monotonic() + CANCEL_S
        for request in requests:
            if monotonic() < end:
                self.workload.end(request, None)
            else:
                self._queue.cancel(request)

    def _admit(self, most: int | None) -> None:
        for part, error in self._scheduler.admit(self.workload.acquire, self.workload.start, most):
            self.workload.end(part.whole, error)

    def _fail(self, batch: Any, error: Exception) -> None:
        """Ends the rows of a batch that failed; a few failures in a row end the engine."""
        log.error("a step failed", exc_info=error)
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            raise error
        for row in list(self.workload.rows(batch)):
            self.workload.end(row.request.whole, EngineError("a step of the engine failed"))
