"""EngineCore: the steps of an engine, in its own thread: schedule, forward, sample, commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyvera.adapter.route import Route, route
from polyvera.engine.adapter_cache import AdapterCache, Observe
from polyvera.engine.generation.attention import attending
from polyvera.engine.generation.batch import Batch, make_batch
from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.kv_cache import KVCache, PrefixCache
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, STOP, Request, RequestOutput, Token
from polyvera.engine.generation.rows import Row, next_chunks
from polyvera.engine.generation.sampler import Sampled, sample
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.scheduler import Scheduler
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.errors import PolyveraError, ServeError
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
MAX_FAILURES = 3
LOOK_AHEAD = 64
NO_ROUTE: tuple[tuple[int, ...], Route] = ((), Route(0))


class EngineCore:
    """All that the steps read and write; nothing of it is touched by another thread, save `stats`.

    limits: with max_context and chunk as numbers. num_tokens: of the vocabulary that may be chosen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapters: AdapterCache,
        queue: RequestQueue[Request],
        limits: Limits,
        num_tokens: int,
        observe: Observe,
    ) -> None:
        self._model, self._tokenizer, self._adapters, self._queue = model, tokenizer, adapters, queue
        self._limits, self._num_tokens, self._observe = limits, num_tokens, observe
        self._context = limits.max_context or 1
        self._scheduler: Scheduler[Request, Row] = Scheduler(limits.max_rows)
        self._kv_cache = KVCache(limits.max_rows, self._context)
        self._prefix_cache = PrefixCache(limits.prefix_bytes)
        self._route = NO_ROUTE
        self._totals = dict.fromkeys(("steps", "prompt_tokens", "answer_tokens", "reused_tokens"), 0)
        self._num_failures = 0
        self.stats = self._snapshot()

    @property
    def is_busy(self) -> bool:
        """Whether a request has come and has not been told its end."""
        return self._queue.num_open > 0

    def step(self) -> bool:
        """One step; whether there was anything to compute. Raises the last of several failures in a row."""
        started = monotonic()
        batch = self._schedule()
        if batch is not None:
            try:
                self._commit(batch, self._sample(batch, self._forward(batch)))
                self._num_failures = 0
            except Exception as error:
                self._failed(error)
            self._observe("step_s", monotonic() - started)
        self.stats = self._snapshot()
        return batch is not None

    def end_all(self, finish_reason: str, error: PolyveraError | None = None) -> None:
        """Ends every request, those that wait too."""
        self._end_running(finish_reason, error)
        for request in (*self._queue.arrived(), *self._scheduler.waiting()):
            self._queue.left()
            self._tell(request, RequestOutput(finish_reason=finish_reason, error=error))
        self._queue.do_jobs()
        self.stats = self._snapshot()

    def _schedule(self) -> Batch | None:
        """Takes in what has come, gives free rows to who waits, and lays the next tokens side by side."""
        self._adapters.collect()
        cancelled = self._queue.cancelled()  # first: whoever is cancelled has arrived by then
        for request in self._queue.arrived():
            self._scheduler.add(request)
        for request in cancelled:
            self._cancel(request)
        self._queue.do_jobs()
        self._admit()
        if self._scheduler.has_room and self._adapters.wait_briefly():
            self._admit()
        for _, request in zip(range(LOOK_AHEAD), self._scheduler.waiting(), strict=False):
            self._adapters.prefetch(request.adapter)
        decoding, reading = next_chunks(self._scheduler.running, self._limits.chunk or 1)
        if not (decoding or reading):
            return None
        for chunk in (*decoding, *reading):
            chunk.row.num_computed = chunk.stop
        return make_batch(decoding, reading, self._context, self._model.device)

    def _forward(self, batch: Batch) -> Tensor:
        """(rows, vocabulary)"""
        self._kv_cache.slot_mapping = batch.slot_mapping
        keep = batch.last if len(batch.last) else batch.last.new_zeros(1)
        is_whole = self._adapters.adapts_output  # that layer too then has its adapter for every token
        with route(self._routed(batch)), attending(batch.attention):
            model: Any = self._model
            out = model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                past_key_values=self._kv_cache,
                use_cache=True,
                logits_to_keep=0 if is_whole else keep,
            )
        self._totals["steps"] += 1
        logits = out.logits[0, keep] if is_whole else out.logits[0]
        return logits[: len(batch.rows), : self._num_tokens]  # type: ignore[no-any-return]

    def _sample(self, batch: Batch, logits: Tensor) -> list[Sampled]:
        return sample(logits, [row.sampler for row in batch.rows], [row.request.answer for row in batch.rows])

    def _commit(self, batch: Batch, tokens: Sequence[Sampled]) -> None:
        """Adds each row's token to its answer, tells it, and ends what is complete."""
        for row, token in zip(batch.rows, tokens, strict=True):
            if isinstance(token, ServeError):
                self._end(row, RequestOutput(finish_reason=FAILED, error=token))
                continue
            request = row.request
            if not request.answer:
                request.first_token = monotonic()
                self._keep_prefix(row, request.prompt)
            self._totals["answer_tokens"] += 1
            request.answer.append(token.id)
            try:
                self._advance(row, token)
            except ServeError as error:
                self._end(row, RequestOutput(finish_reason=FAILED, error=error))

    # --- the parts of a step ---

    def _admit(self) -> None:
        for request, error in self._scheduler.admit(lambda r: self._adapters.acquire(r.adapter), self._start):
            self._queue.left()
            self._tell(request, RequestOutput(finish_reason=FAILED, error=error))

    def _advance(self, row: Row, token: Token) -> None:
        request, params = row.request, row.request.params
        is_long_enough = len(request.answer) > params.min_tokens
        ended = token.id in row.sampler.ends or (token.id in params.stop_ids and is_long_enough)
        complete = row.sampler.accept(token.id)
        text = "" if ended else row.detokenizer.add(token.id)
        finish = STOP if ended or complete or row.detokenizer.is_stopped else None
        if finish is None and len(request.answer) >= self._room(request):
            finish = LENGTH
        if finish is None:
            self._tell(request, RequestOutput((token,), text), row)
        else:
            self._end(row, RequestOutput((token,), text + row.detokenizer.finish(), finish))

    def _room(self, request: Request) -> int:
        room = self._context - len(request.prompt)
        return min(room, request.params.max_tokens or room)

    def _start(self, request: Request, index: int, slot: int) -> Row:
        self._queue.left()
        self._observe("queue_s", request.admitted - request.submitted)
        row = Row(request, index, slot, request.sampler, Detokenizer(self._tokenizer, request.params.stop))
        found, length = self._prefix_cache.longest(_owner(request), request.prompt)
        if found is not None:
            self._kv_cache.write(index, found.pairs, length)
            row.num_computed = request.num_reused = length
        self._totals["prompt_tokens"] += len(request.prompt)
        self._totals["reused_tokens"] += length
        return row

    def _end(self, row: Row, output: RequestOutput) -> None:
        """Takes a row out, and tells why."""
        if output.finish_reason != FAILED:
            self._keep_prefix(row, row.tokens(0, row.num_computed))
        self._scheduler.finish(row)
        self._kv_cache.clear(row.index, row.num_computed)
        self._adapters.release(row.slot)
        self._route = NO_ROUTE  # the slot may be another adapter's when its number comes again
        self._tell(row.request, output)

    def _keep_prefix(self, row: Row, tokens: Sequence[int]) -> None:
        owner = _owner(row.request)
        if self._prefix_cache.wants(owner, tokens, self._kv_cache.token_bytes):
            self._prefix_cache.keep(owner, tokens, self._kv_cache.read(row.index, len(tokens)))

    def _routed(self, batch: Batch) -> Route:
        """The batch's route, the last one again where nothing has changed, with all that was gathered for it."""
        if not batch.is_decoding:
            return _route_of(batch.slots, once=True)
        if self._route[0] != batch.slots:
            self._route = (batch.slots, _route_of(batch.slots, once=False))
        return self._route[1]

    def _cancel(self, request: Request) -> None:
        row = next((row for row in self._scheduler.running if row.request is request), None)
        if row is not None:
            self._end(row, RequestOutput(finish_reason=CANCELLED))
        elif any(waiting is request for waiting in self._scheduler.waiting()):
            self._scheduler.drop(request)
            self._queue.left()
            self._tell(request, RequestOutput(finish_reason=CANCELLED))

    def _failed(self, error: Exception) -> None:
        """Ends the rows of a step that failed; a few failures in a row end the engine."""
        log.error("a step failed", exc_info=error)
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            raise error
        error = error if isinstance(error, PolyveraError) else ServeError("this step of the engine failed")
        self._end_running(FAILED, error)

    def _end_running(self, finish_reason: str, error: PolyveraError | None) -> None:
        for row in list(self._scheduler.running):
            self._end(row, RequestOutput(finish_reason=finish_reason, error=error))

    def _tell(self, request: Request, output: RequestOutput, row: Row | None = None) -> None:
        if output.finish_reason is not None:
            request.finished = monotonic()
        try:
            request.on_output(output)
        except Exception:
            log.exception("a listener failed; its request is cancelled")
            if row is not None:
                self._queue.cancel(request)
        if output.finish_reason is not None:
            self._queue.ended()

    def _snapshot(self) -> EngineStats:
        running = tuple(
            RunningRequest(str(row.request.adapter or ""), row.request.tenant, row.request.num_tokens)
            for row in list(self._scheduler.running)
        )
        totals = {**self._totals, **self._adapters.totals}
        return EngineStats(running, self._queue.num_waiting, (), self._limits.num_slots, totals)


def _owner(request: Request) -> tuple[str, AdapterRef | None]:
    return request.tenant, request.adapter


def _route_of(slots: tuple[int, ...], once: bool) -> Route:
    """All rows of one slot need no gathering."""
    return Route(slots[0] if len(set(slots)) == 1 else torch.tensor([slots]), held=True, once=once)
