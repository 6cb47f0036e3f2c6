"""Work: the answers of one HTTP request, from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from polyvera.engine.generation.request import CANCELLED, Output, Request, Sampling, Token
from polyvera.errors import ClosedError
from polyvera.server.context import Front
from polyvera.store.reference import AdapterRef

Part = tuple[int, Output]
T = TypeVar("T")


@dataclass(slots=True)
class Told:
    """One answer as far as it was told."""

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: str = ""

    def add(self, output: Output) -> None:
        """Takes in a part."""
        self.tokens += output.tokens
        self.text += output.text
        self.finish = output.finish or ""


class Work:
    """Several answers being made. A context: what has not ended when it is left is cancelled."""

    def __init__(self, front: Front, tenant: str) -> None:
        self._front, self._tenant = front, tenant
        self._loop, self._parts = asyncio.get_running_loop(), asyncio.Queue[Part]()
        self._held, self._num_left = ExitStack(), 0
        self._last: dict[int, float] = {}
        self.requests: list[Request] = []

    async def start(
        self, prompts: Sequence[Sequence[int]], adapter: AdapterRef | None, samplings: Sequence[Sampling]
    ) -> None:
        """Asks the engine: every prompt with every choice. Raises BusyError, SamplingError, ClosedError."""
        num = len(prompts) * len(samplings)
        self._held.enter_context(self._front.quotas.taken(self._tenant, num))
        asked = [(prompt, sampling) for prompt in prompts for sampling in samplings]
        self._num_left, started = num, monotonic()
        self._last = dict.fromkeys(range(num), started)
        await asyncio.to_thread(self._submit, asked, adapter)

    async def parts(self) -> AsyncIterator[Part]:
        """(which answer, what it is told), until all have ended. Raises what ended one of them."""
        while self._num_left:
            i, output = await self._parts.get()
            self._count(i, output)
            if output.finish is not None:
                self._num_left -= 1
            if output.problem is not None:
                raise output.problem
            if output.finish == CANCELLED:
                raise ClosedError("the answer was cancelled: the server is stopping, or its parts were not fetched")
            yield i, output

    async def whole(self, request: HttpRequest) -> list[Told]:
        """All answers; cancelled where the client goes."""
        return await while_there(request, self._gathered())

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
        for request in self.requests:
            if not request.finished:
                self._front.engine.cancel(request)
        if self.requests:
            tokens = self._front.metrics.tokens
            tokens.labels(self._tenant, "prompt").inc(self.num_prompt_tokens)
            tokens.labels(self._tenant, "answer").inc(self.num_answer_tokens)
        self._held.close()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _gathered(self) -> list[Told]:
        told = [Told() for _ in self.requests]
        async for i, output in self.parts():
            told[i].add(output)
        return told

    def _submit(self, asked: Sequence[tuple[Sequence[int], Sampling]], adapter: AdapterRef | None) -> None:
        for i, (prompt, sampling) in enumerate(asked):
            tell = lambda output, i=i: self._hop(i, output)  # noqa: E731
            self.requests.append(self._front.engine.submit(prompt, adapter, sampling, tell=tell, tenant=self._tenant))

    def _hop(self, i: int, output: Output) -> None:
        """In the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, i, output)
        except RuntimeError:  # the event loop has ended before the engine
            return

    def _put(self, i: int, output: Output) -> None:
        self._parts.put_nowait((i, output))
        if self._parts.qsize() > self._front.settings.max_queued * max(1, len(self.requests)):
            for request in self.requests:  # nobody fetches them
                self._front.engine.cancel(request)

    def _count(self, i: int, output: Output) -> None:
        metrics, now = self._front.metrics, monotonic()
        if output.tokens:
            is_first = self.requests[i].first_token == 0 or len(self.requests[i].answer) <= len(output.tokens)
            (metrics.first if is_first else metrics.between).observe(now - self._last[i])
            self._last[i] = now
        if output.finish is not None:
            metrics.answers.labels(self._tenant, output.finish).inc()


async def while_there(request: HttpRequest, asked: Awaitable[T]) -> T:
    """What was asked for; cancelled, and ClosedError, where the client goes."""
    asking = asyncio.ensure_future(asked)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise ClosedError("the client has gone")
        return asking.result()
    finally:
        for task in (asking, gone):
            task.cancel()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
