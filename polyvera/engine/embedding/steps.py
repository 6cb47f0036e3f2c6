"""EncoderCore: the steps of an encoder, in its own thread: admit, sort by length, forward, tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from time import monotonic

import torch
from torch import Tensor

from polyvera.adapter.route import Route, route
from polyvera.engine.adapter_cache import AdapterCache, Observe
from polyvera.engine.embedding.model_runner import EncoderRunner
from polyvera.engine.embedding.pooling import Pooling
from polyvera.engine.embedding.request import EncodeRequest, Text, TextRow
from polyvera.engine.generation.steps import LOOK_AHEAD, MAX_FAILURES
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.errors import ClosedError, PolyveraError, ServeError

log = logging.getLogger(__name__)


class EncoderCore:
    """All that the steps read and write; nothing of it is touched by another thread, save `stats`.

    A step takes at most max_rows texts, the tenants in turn, and computes them in batches of like lengths, each of at
    most `chunk` tokens with what fills them up.
    """

    def __init__(
        self,
        runner: EncoderRunner,
        pooling: Pooling,
        adapters: AdapterCache,
        queue: RequestQueue[EncodeRequest],
        limits: Limits,
        observe: Observe,
    ) -> None:
        self._runner, self._pooling, self._adapters, self._queue = runner, pooling, adapters, queue
        self._limits, self._observe = limits, observe
        self._scheduler: Scheduler[Text, TextRow] = Scheduler(limits.max_rows)
        self._calls: dict[int, EncodeRequest] = {}  # those that have not ended
        self._totals = dict.fromkeys(("steps", "prompt_tokens"), 0)
        self._num_failures = 0
        self.stats = self._snapshot()

    @property
    def is_busy(self) -> bool:
        """Whether a call has come and has not been told its end."""
        return self._queue.num_open > 0

    def step(self) -> bool:
        """One step; whether there was anything to compute. Raises the last of several failures in a row."""
        started = monotonic()
        self._admit()
        self.stats = self._snapshot()
        running = list(self._scheduler.running)
        try:
            for batch in batches(running, self._limits.chunk or 1):
                self._compute(batch)
        finally:
            for row in running:
                self._scheduler.finish(row)
        if running:
            self._observe("step_s", monotonic() - started)
        self.stats = self._snapshot()
        return bool(running)

    def end_all(self, finish_reason: str, error: PolyveraError | None = None) -> None:
        """Ends every call, those that wait too."""
        for call in self._queue.arrived():
            self._calls[call.number] = call
        for call in list(self._calls.values()):
            self._end(call, error or ClosedError("the encoder has stopped before this was done"))
        self._queue.do_jobs()
        self.stats = self._snapshot()

    # --- the parts of a step ---

    def _admit(self) -> None:
        """Takes in what has come, and gives places to who waits."""
        self._adapters.collect()
        cancelled = self._queue.cancelled()  # first: whoever is cancelled has arrived by then
        for call in self._queue.arrived():
            self._calls[call.number] = call
            for text in call.texts():
                self._scheduler.add(text)
        for call in cancelled:
            self._end(call, ClosedError("the request was cancelled"))
        self._queue.do_jobs()
        for text, error in self._scheduler.admit(self._acquire, self._start):
            self._end(text.call, error)
        for _, text in zip(range(LOOK_AHEAD), self._scheduler.waiting(), strict=False):
            self._adapters.prefetch(text.call.adapter)

    def _acquire(self, text: Text) -> int | None:
        """The slot. Raises what the load raised, or ServeError for classes without a head."""
        call = text.call
        if call.is_over:
            raise ClosedError("its call has ended")
        if call.slot is None:
            call.slot = self._adapters.acquire(call.adapter)
            if call.slot is not None:
                self._queue.left()
                self._observe("queue_s", monotonic() - call.submitted)
                call.labels = self._labels(call)
        return call.slot

    def _labels(self, call: EncodeRequest) -> tuple[str, ...]:
        own = self._adapters.labels(call.slot) if call.slot else ()
        labels = own or self._runner.labels
        if call.is_classes and not labels:
            raise ServeError(
                f"{call.adapter} has no head for classes, and the base model has none either: name an adapter that "
                "was trained on labels, or ask for embeddings"
            )
        return labels

    def _start(self, text: Text, index: int, slot: int) -> TextRow:
        return TextRow(text, index)

    def _compute(self, batch: Sequence[TextRow]) -> None:
        """One forward, and what comes of it; a few failures in a row end the encoder. What is over is left out."""
        batch = [row for row in batch if not row.request.call.is_over]
        if not batch:
            return
        try:
            found = self._forward(batch)
            self.stats = self._snapshot()  # before anyone is told, who may ask for it
            self._commit(batch, *found)
            self._num_failures = 0
        except Exception as error:
            log.error("a step failed", exc_info=error)
            self._num_failures += 1
            error = error if isinstance(error, PolyveraError) else ServeError("this step of the encoder failed")
            for row in batch:
                self._end(row.request.call, error)
            if self._num_failures >= MAX_FAILURES:
                raise

    def _forward(self, batch: Sequence[TextRow]) -> tuple[Tensor, Tensor | None]:
        """Vectors (rows, width) and logits (rows, the most classes), in fp32 on the CPU."""
        slots = torch.tensor([row.request.call.slot for row in batch])
        with route(Route(slots, held=True, once=True)):
            hidden, mask, logits = self._runner([row.request.tokens for row in batch])
        self._totals["steps"] += 1
        self._totals["prompt_tokens"] += sum(len(row.request.tokens) for row in batch)
        return self._pooling(hidden, mask).cpu(), None if logits is None else logits.float().cpu()

    def _commit(self, batch: Sequence[TextRow], vectors: Tensor, logits: Tensor | None) -> None:
        for i, row in enumerate(batch):
            call = row.request.call
            if call.is_classes:
                assert logits is not None
                found = torch.softmax(logits[i, : len(call.labels)], -1)
            else:
                found = vectors[i]
            self._found(row.request, found)

    def _found(self, text: Text, found: Tensor) -> None:
        """Takes in one text's numbers, and ends its call where it was the last."""
        call = text.call
        if call.is_over:
            return
        if not bool(found.isfinite().all()):
            self._end(call, ServeError("this model and adapter gave numbers that are not finite for this text"))
            return
        call.found[text.index] = found
        if len(call.found) == len(call.rows):
            self._end(call)

    def _end(self, call: EncodeRequest, error: PolyveraError | None = None) -> None:
        if self._calls.pop(call.number, None) is None:
            return
        if call.slot is None:
            self._queue.left()
        else:
            self._adapters.release(call.slot)
        call.end(error)
        self._queue.ended()

    def _snapshot(self) -> EngineStats:
        running = tuple(
            RunningRequest(str(row.request.call.adapter or ""), row.request.tenant, len(row.request.tokens))
            for row in list(self._scheduler.running)
        )
        totals = {**self._totals, **self._adapters.totals}
        return EngineStats(running, self._queue.num_waiting, (), self._limits.num_slots, totals)


def batches(rows: Sequence[TextRow], most: int) -> Iterator[list[TextRow]]:
    """Rows of like lengths, at most so many tokens with what fills them up; a longer row is alone."""
    batch: list[TextRow] = []
    for row in sorted(rows, key=lambda row: len(row.request.tokens)):  # so that the next is the longest yet
        if batch and (len(batch) + 1) * len(row.request.tokens) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
