"""Loop: the steps of an engine, in its own thread: schedule, forward, sample, commit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyvera.adapter.route import Route, route
from polyvera.engine.adapter_cache import Observe, Residents
from polyvera.engine.generation.attention import attending
from polyvera.engine.generation.batch import Batch, make_batch
from polyvera.engine.generation.detokenizer import Text
from polyvera.engine.generation.kv_cache import Cache, Prefixes
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, STOP, Output, Request, Token
from polyvera.engine.generation.sampler import Drawn, sample
from polyvera.engine.limits import Limits
from polyvera.engine.request_queue import Inbox
from polyvera.engine.scheduler import Row, Scheduler
from polyvera.engine.stats import Running, Stats
from polyvera.errors import PolyveraError, ServeError
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
MAX_FAILURES = 3
LOOK_AHEAD = 64
NO_ROUTE: tuple[tuple[int, ...], Route] = ((), Route(0))


class Loop:
    """All that the steps read and write; nothing of it is touched by another thread, save `stats`.

    limits: with max_context and chunk as numbers. num_tokens: of the vocabulary that may be chosen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        residents: Residents,
        inbox: Inbox[Request],
        limits: Limits,
        num_tokens: int,
        observe: Observe,
    ) -> None:
        self._model, self._tokenizer, self._residents, self._inbox = model, tokenizer, residents, inbox
        self._limits, self._num_tokens, self._observe = limits, num_tokens, observe
        self._context = limits.max_context or 1
        self._scheduler: Scheduler[Request, Row] = Scheduler(limits.max_rows, limits.chunk or 1)
        self._cache = Cache(limits.max_rows, self._context)
        self._prefixes = Prefixes(limits.prefix_bytes)
        self._route = NO_ROUTE
        self._totals = dict.fromkeys(("steps", "prompt_tokens", "answer_tokens", "reused_tokens"), 0)
        self._num_failures = 0
        self.stats = self._told()

    @property
    def is_busy(self) -> bool:
        """Whether a request has come and has not been told its end."""
        return self._inbox.num_open > 0

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
        self.stats = self._told()
        return batch is not None

    def end_all(self, finish: str, problem: PolyveraError | None = None) -> None:
        """Ends every request, those that wait too."""
        self._end_running(finish, problem)
        for request in (*self._inbox.arrived(), *self._scheduler.waiting()):
            self._inbox.left()
            self._tell(request, Output(finish=finish, problem=problem))
        self._inbox.do_jobs()
        self.stats = self._told()

    def _schedule(self) -> Batch | None:
        """Takes in what has come, gives free rows to who waits, and lays the next tokens side by side."""
        self._residents.settle()
        cancelled = self._inbox.cancelled()  # first: whoever is cancelled has arrived by then
        for request in self._inbox.arrived():
            self._scheduler.add(request)
        for request in cancelled:
            self._cancel(request)
        self._inbox.do_jobs()
        self._admit()
        if self._scheduler.has_room and self._residents.linger():
            self._admit()
        for _, request in zip(range(LOOK_AHEAD), self._scheduler.waiting(), strict=False):
            self._residents.want(request.adapter)
        decoding, reading = self._scheduler.work()
        if not (decoding or reading):
            return None
        for work in (*decoding, *reading):
            work.row.num_computed = work.stop
        return make_batch(decoding, reading, self._context, self._model.device)

    def _forward(self, batch: Batch) -> Tensor:
        """(rows, vocabulary)"""
        self._cache.places = batch.places
        keep = batch.last if len(batch.last) else batch.last.new_zeros(1)
        is_whole = self._residents.adapts_output  # that layer too then has its adapter for every token
        with route(self._routed(batch)), attending(batch.step):
            model: Any = self._model
            out = model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if is_whole else keep,
            )
        self._totals["steps"] += 1
        logits = out.logits[0, keep] if is_whole else out.logits[0]
        return logits[: len(batch.rows), : self._num_tokens]  # type: ignore[no-any-return]

    def _sample(self, batch: Batch, logits: Tensor) -> list[Drawn]:
        return sample(logits, [row.choice for row in batch.rows], [row.request.answer for row in batch.rows])

    def _commit(self, batch: Batch, tokens: Sequence[Drawn]) -> None:
        """Adds each row's token to its answer, tells it, and ends what is complete."""
        for row, token in zip(batch.rows, tokens, strict=True):
            if isinstance(token, ServeError):
                self._end(row, Output(finish=FAILED, problem=token))
                continue
            request = row.request
            if not request.answer:
                request.first_token = monotonic()
                self._keep_prefix(row, request.prompt)
            self._totals["answer_tokens"] += 1
            request.answer.append(token.id)
            try:
                self._advance(row, token)
            except ServeError as problem:
                self._end(row, Output(finish=FAILED, problem=problem))

    # --- the parts of a step ---

    def _admit(self) -> None:
        for request, error in self._scheduler.admit(lambda r: self._residents.acquire(r.adapter), self._start):
            self._inbox.left()
            self._tell(request, Output(finish=FAILED, problem=error))

    def _advance(self, row: Row, token: Token) -> None:
        request, sampling = row.request, row.request.sampling
        is_long_enough = len(request.answer) > sampling.min_tokens
        ended = token.id in row.choice.ends or (token.id in sampling.stop_ids and is_long_enough)
        complete = row.choice.accept(token.id)
        text = "" if ended else row.text.add(token.id)
        finish = STOP if ended or complete or row.text.is_stopped else None
        if finish is None and len(request.answer) >= self._room(request):
            finish = LENGTH
        if finish is None:
            self._tell(request, Output((token,), text), row)
        else:
            self._end(row, Output((token,), text + row.text.finish(), finish))

    def _room(self, request: Request) -> int:
        room = self._context - len(request.prompt)
        return min(room, request.sampling.max_tokens or room)

    def _start(self, request: Request, place: int, slot: int) -> Row:
        self._inbox.left()
        self._observe("queue_s", request.admitted - request.submitted)
        row = Row(request, place, slot, request.choice, Text(self._tokenizer, request.sampling.stop))
        found, length = self._prefixes.longest(_owner(request), request.prompt)
        if found is not None:
            self._cache.write(place, found.pairs, length)
            row.num_computed = request.num_reused = length
        self._totals["prompt_tokens"] += len(request.prompt)
        self._totals["reused_tokens"] += length
        return row

    def _end(self, row: Row, output: Output) -> None:
        """Takes a row out, and tells why."""
        if output.finish != FAILED:
            self._keep_prefix(row, row.tokens(0, row.num_computed))
        self._scheduler.finish(row)
        self._cache.clear(row.place, row.num_computed)
        self._residents.release(row.slot)
        self._route = NO_ROUTE  # the slot may be another adapter's when its number comes again
        self._tell(row.request, output)

    def _keep_prefix(self, row: Row, tokens: Sequence[int]) -> None:
        owner = _owner(row.request)
        if self._prefixes.wants(owner, tokens, self._cache.token_bytes):
            self._prefixes.keep(owner, tokens, self._cache.read(row.place, len(tokens)))

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
            self._end(row, Output(finish=CANCELLED))
        elif any(waiting is request for waiting in self._scheduler.waiting()):
            self._scheduler.drop(request)
            self._inbox.left()
            self._tell(request, Output(finish=CANCELLED))

    def _failed(self, error: Exception) -> None:
        """Ends the rows of a step that failed; a few failures in a row end the engine."""
        log.error("a step failed", exc_info=error)
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            raise error
        problem = error if isinstance(error, PolyveraError) else ServeError("this step of the engine failed")
        self._end_running(FAILED, problem)

    def _end_running(self, finish: str, problem: PolyveraError | None) -> None:
        for row in list(self._scheduler.running):
            self._end(row, Output(finish=finish, problem=problem))

    def _tell(self, request: Request, output: Output, row: Row | None = None) -> None:
        if output.finish is not None:
            request.finished = monotonic()
        try:
            request.tell(output)
        except Exception:
            log.exception("a listener failed; its request is cancelled")
            if row is not None:
                self._inbox.cancel(request)
        if output.finish is not None:
            self._inbox.ended()

    def _told(self) -> Stats:
        running = tuple(
            Running(str(row.request.adapter or ""), row.request.tenant, row.request.num_tokens)
            for row in list(self._scheduler.running)
        )
        totals = {**self._totals, **self._residents.totals}
        return Stats(running, self._inbox.num_waiting, (), self._limits.num_slots, totals)


def _owner(request: Request) -> tuple[str, AdapterRef | None]:
    return request.tenant, request.adapter


def _route_of(slots: tuple[int, ...], once: bool) -> Route:
    """All rows of one slot need no gathering."""
    return Route(slots[0] if len(set(slots)) == 1 else torch.tensor([slots]), held=True, once=once)
