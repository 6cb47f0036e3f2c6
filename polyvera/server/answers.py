"""AnswerStream: the answers of one HTTP request, from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from polyvera.engine.generation.request import CANCELLED, Answer, Request, RequestOutput, SamplingParams
from polyvera.engine.protocol import GenerationEngine
from polyvera.errors import ClosedError, DisconnectedError
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext
from polyvera.server.rate_limits import Reservation
from polyvera.store.reference import AdapterRef

Part = tuple[int, RequestOutput]
SILENCE = -1  # the number of an answer's part that says nothing came for PING_S
PING_S = 10.0
T = TypeVar("T")


class AnswerStream:
    """Several answers being made. A context: what has not ended when it is left is cancelled."""

    def __init__(self, context: ServerContext, engine: GenerationEngine, caller: Caller) -> None:
        self._context, self._engine, self._caller = context, engine, caller
        self._adapter: AdapterRef | None = None
        self._reservation = Reservation()
        self._loop, self._parts = asyncio.get_running_loop(), asyncio.Queue[Part]()
        self._quota, self._num_left = ExitStack(), 0
        self._last: dict[int, float] = {}
        self._has_ended: set[int] = set()
        self._has_begun: set[int] = set()
        self._is_closed = False
        self._said = monotonic()
        self._pinging: asyncio.TimerHandle | None = None
        self.requests: list[Request] = []

    async def reserve(self, num: int) -> None:
        """Waits for the tenant's turn, and counts so many answers as under way until the end. Raises BusyError."""
        admission = self._context.admission
        await admission.admit(self._caller, num)
        self._quota.callback(admission.leave, self._caller, num)

    async def start(
        self, prompts: Sequence[Sequence[int]], adapter: AdapterRef | None, all_params: Sequence[SamplingParams]
    ) -> None:
        """Asks the engine: every prompt with every choice. Raises BusyError, SamplingError, ClosedError.

        The tokens that it may need are kept of what the key has left, and those that it spent are counted at the end.
        """
        most, self._adapter = self._engine.max_context, adapter
        asks = [most if params.max_tokens is None else params.max_tokens for params in all_params]
        num_tokens = sum(min(most, len(row) + num) for row in prompts for num in asks)
        self._reservation = self._quota.enter_context(self._context.rates.reserve(self._caller, num_tokens))
        asked = [(prompt, params) for prompt in prompts for params in all_params]
        self._num_left, started = len(asked), monotonic()
        self._last = dict.fromkeys(range(len(asked)), started)
        self._context.history.wait(self._group, len(asked))
        has_form = any(params.schema or params.grammar for params in all_params)
        pool = self._context.compiling if has_form else self._context.pool
        await pool.run(self._caller.tenant, self._submit, asked, adapter)

    def ping(self) -> None:
        """From now on parts() has one of SILENCE where nothing else comes for PING_S."""
        if monotonic() - self._said >= PING_S:
            self._parts.put_nowait((SILENCE, RequestOutput()))
            self._said = monotonic()
        self._pinging = self._loop.call_later(max(0.0, self._said + PING_S - monotonic()), self.ping)

    async def parts(self) -> AsyncIterator[Part]:
        """(which answer, its next part), until all have ended. Raises what ended one of them."""
        while self._num_left:
            i, output = await self._parts.get()
            if i == SILENCE:
                yield i, output
                continue
            self._count(i, output)
            if output.finish_reason is not None:
                self._num_left -= 1
            if output.error is not None:
                raise output.error
            if output.finish_reason == CANCELLED:
                raise ClosedError("the answer was cancelled: the server is stopping, or its parts were not fetched")
            yield i, output

    async def whole(self, request: HttpRequest) -> list[Answer]:
        """All answers; cancelled where the client goes."""
        return await while_there(request, self.gathered())

    async def gathered(self) -> list[Answer]:
        """All answers."""
        answers = [Answer() for _ in self.requests]
        async for i, output in self.parts():
            answers[i].add(output)
        return answers

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum({id(r.prompt): len(r.prompt) for r in self.requests}.values())

    @property
    def num_answer_tokens(self) -> int:
        """Of all answers so far."""
        return sum(len(r.answer) for r in self.requests)

    @property
    def num_reused(self) -> int:
        """Prompt tokens that were not computed again."""
        return sum({id(r.prompt): r.num_reused for r in self.requests}.values())

    def close(self) -> None:
        """Cancels what has not ended, and gives the quota back."""
        self._is_closed = True
        if self._pinging is not None:
            self._pinging.cancel()
        for i in self._last:
            self._begin(i)
        for i, request in enumerate(self.requests):
            if not request.finished:
                self._engine.cancel(request)
            if i not in self._has_ended:
                self._end(i, CANCELLED)
        if self.requests:
            self._reservation.num_spent = self.num_prompt_tokens + self.num_answer_tokens
            self._context.count(self._caller, self._adapter, self.num_prompt_tokens, self.num_answer_tokens)
        self._quota.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, asked: Sequence[tuple[Sequence[int], SamplingParams]], adapter: AdapterRef | None) -> None:
        for i, (prompt, params) in enumerate(asked):
            on_output = lambda output, i=i: self._hop(i, output)  # noqa: E731
            caller = self._caller
            request = Request(prompt, adapter, params, on_output, caller.tenant, weight=caller.weight)
            self.requests.append(self._engine.submit(request))
            if self._is_closed:  # its client has gone meanwhile
                self._engine.cancel(request)
                return

    def _hop(self, i: int, output: RequestOutput) -> None:
        """In the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, i, output)
        except RuntimeError:  # the event loop has ended before the engine
            return

    def _put(self, i: int, output: RequestOutput) -> None:
        self._said = monotonic()
        self._parts.put_nowait((i, output))
        if self._parts.qsize() > self._context.config.max_queued * max(1, len(self.requests)):
            for request in self.requests:  # nobody fetches them
                self._engine.cancel(request)

    def _count(self, i: int, output: RequestOutput) -> None:
        metrics, now = self._context.metrics, monotonic()
        if output.tokens:
            is_first, wait_s = i not in self._has_begun, now - self._last[i]
            first = metrics.first.labels(metrics.adapters.label(self._adapter))
            (first if is_first else metrics.between).observe(wait_s)
            self._context.history.add(self._group, len(output.tokens), wait_s if is_first else None)
            self._last[i] = now
            self._begin(i)
        if output.finish_reason is not None:
            self._end(i, output.finish_reason)

    @property
    def _group(self) -> tuple[str, str]:
        return self._caller.tenant, self._context.catalog.base if self._adapter is None else self._adapter.name

    def _begin(self, i: int) -> None:
        """Its first token has come, or never will."""
        if i not in self._has_begun:
            self._has_begun.add(i)
            self._context.history.wait(self._group, -1)

    def _end(self, i: int, finish_reason: str) -> None:
        self._has_ended.add(i)
        metrics = self._context.metrics
        metrics.answers.labels(self._caller.tenant, metrics.adapters.label(self._adapter), finish_reason).inc()


async def while_there(request: HttpRequest, asked: Awaitable[T]) -> T:
    """What was asked for; cancelled, and ClosedError, where the client goes."""
    asking = asyncio.ensure_future(asked)
    gone = asyncio.create_task(_gone(request))
    for task in (asking, gone):
        task.add_done_callback(_seen)
    try:
        await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise DisconnectedError("the client has gone")
        return asking.result()
    finally:
        for task in (asking, gone):
            task.cancel()


def _seen(task: asyncio.Future[Any]) -> None:
    """Looks at what failed, so that asyncio logs no error of a request whose client has gone."""
    if not task.cancelled():
        task.exception()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
