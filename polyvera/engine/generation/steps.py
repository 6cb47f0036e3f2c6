"""EngineCore: the steps of an engine, in its own thread: schedule, forward, sample, commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from polyvera.engine.adapter_cache import AdapterCache, Observe
from polyvera.engine.generation.detokenizer import Detokenizer
from polyvera.engine.generation.forward import Forward
from polyvera.engine.generation.kv_cache import KVCache, PrefixCache
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, STOP, Request, RequestOutput, Token
from polyvera.engine.generation.rows import Chunk, Row, next_chunks
from polyvera.engine.generation.sampler import Sampled, Scores, sample
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
        self._tokenizer, self._adapters, self._queue = tokenizer, adapters, queue
        self._limits, self._observe = limits, observe
        self._context = limits.max_context or 1
        self._scheduler: Scheduler[Request, Row] = Scheduler(limits.max_rows)
        self._kv_cache = KVCache(limits.max_rows, self._context)
        self._prefix_cache = PrefixCache(limits.prefix_bytes)
        self._forward = Forward(model, adapters, self._kv_cache, limits, num_tokens)
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
        decoding, reading = self._schedule()
        if decoding or reading:
            try:
                rows, scores = self._forward(decoding, reading)
                self._totals["steps"] += 1
                self._commit(rows, self._sample(rows, scores))
                self._num_failures = 0
            except Exception as error:
                self._failed(error)
            self._observe("step_s", monotonic() - started)
        self.stats = self._snapshot()
        return bool(decoding or reading)

    def end_all(self, finish_reason: str, error: PolyveraError | None = None) -> None:
        """Ends every request, those that wait too."""
        self._end_running(finish_reason, error)
        for request in (*self._queue.arrived(), *self._scheduler.waiting()):
            self._queue.left()
            self._tell(request, RequestOutput(finish_reason=finish_reason, error=error))
        self._queue.do_jobs()
        self.stats = self._snapshot()

    def _schedule(self) -> tuple[list[Chunk], list[Chunk]]:
        """Takes in what has come, gives free rows to who waits; the rows that decode and the pieces of prompts."""
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
        for chunk in (*decoding, *reading):
            chunk.row.num_computed = chunk.stop
        return decoding, reading

    def _sample(self, rows: Sequence[Row], scores: Scores) -> list[Sampled]:
        return sample(scores, [row.sampler for row in rows], [row.request.answer for row in rows])

    def _commit(self, rows: Sequence[Row], tokens: Sequence[Sampled]) -> None:
        """Adds each row's token to its answer, tells it, and ends what is complete."""
        for row, token in zip(rows, tokens, strict=True):
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
        self._forward.forget()
        self._tell(row.request, output)

    def _keep_prefix(self, row: Row, tokens: Sequence[int]) -> None:
        owner = _owner(row.request)
        if self._prefix_cache.wants(owner, tokens, self._kv_cache.token_bytes):
            self._prefix_cache.keep(owner, tokens, self._kv_cache.read(row.index, len(tokens)))

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
