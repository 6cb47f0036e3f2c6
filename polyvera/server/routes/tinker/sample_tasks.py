"""SampleTasks: samples that are being drawn, or were and are to be fetched. They live as long as the server."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from time import monotonic

from starlette.requests import Request as HttpRequest

from polyvera.engine.generation.request import SamplingParams
from polyvera.errors import BusyError, SamplingError, UnknownObjectError
from polyvera.server.answers import AnswerStream
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.tinker.answer_messages import sample_answer
from polyvera.server.routes.tinker.bodies import SampleBody
from polyvera.store.reference import AdapterRef

KEPT_S, MAX_BYTES = 600.0, 256 << 20
PREFIX = "sample-"
OWN_BYTES = 2048  # of a task itself


@dataclass(eq=False)
class SampleTask:
    """One request for samples. done_s: when it ended, by time.monotonic(). num_bytes: what it takes then."""

    id: str
    tenant: str
    num: int
    task: asyncio.Task[bytes]
    done_s: float = 0.0
    num_bytes: int = OWN_BYTES


class SampleTasks:
    """Of the event loop's thread. A request that is sent twice is one request."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._tasks: dict[str, SampleTask] = {}
        self._ends, self._num_bytes = deque[SampleTask](), 0  # those that ended, the first one first
        self._num: Counter[str] = Counter()  # samples under way, of each tenant

    def submit(self, request: HttpRequest, body: SampleBody, adapter: AdapterRef | None) -> str:
        """Begins; returns the id to ask by. Raises SamplingError, BusyError for more than a tenant may have waiting."""
        caller, most = caller_of(request), self._context.config.max_choices
        id = f"{PREFIX}{body.sampling_session_id}:{body.seq_id}"
        if body.seq_id is not None and id in self._tasks and self._tasks[id].tenant == caller.tenant:
            return id
        if body.num_samples > min(most, self._context.config.max_per_tenant):
            raise SamplingError(f"num_samples={body.num_samples}: at most {most} a request", "num_samples")
        if self._num[caller.tenant] + body.num_samples > self._context.engine.limits.max_waiting:
            raise BusyError(f"{self._num[caller.tenant]} of your samples are under way: try again later")
        all_params = body.all_params()
        if body.seq_id is None:
            id = f"{PREFIX}{body.sampling_session_id}:{request.state.request_id}"
        task = asyncio.create_task(self._drawn(caller, body, adapter, all_params))
        self._keep(SampleTask(id, caller.tenant, body.num_samples, task))
        return id

    async def wait(self, tenant: str, id: str, timeout_s: float) -> bytes | None:
        """The answer, None where it is not there in time. Raises UnknownObjectError, and what ended it."""
        found = self._found(tenant, id)
        await asyncio.wait((found.task,), timeout=timeout_s)
        if found.task.cancelled():
            raise UnknownObjectError(f"the request {id[:120]} was cancelled")
        return found.task.result() if found.task.done() else None

    def cancel(self, tenant: str, id: str) -> None:
        """Ends what nobody waits for any more. Raises UnknownObjectError."""
        self._found(tenant, id).task.cancel()

    def _found(self, tenant: str, id: str) -> SampleTask:
        found = self._tasks.get(id)
        if found is None or found.tenant != tenant:
            raise UnknownObjectError(f"there is no request {id[:120]!r}")
        return found

    def _keep(self, made: SampleTask) -> None:
        self._tasks[made.id] = made
        self._num[made.tenant] += made.num
        made.task.add_done_callback(lambda task: self._ended(made))

    def _ended(self, made: SampleTask) -> None:
        """Keeps an answer for a while, in which its client may ask again, and the last ones within a bound."""
        self._num[made.tenant] -= made.num
        if not self._num[made.tenant]:
            del self._num[made.tenant]
        made.done_s = monotonic()
        if not made.task.cancelled() and made.task.exception() is None:  # an error is told to whoever asks
            made.num_bytes += len(made.task.result())
        self._ends.append(made)
        self._num_bytes += made.num_bytes
        while self._ends and (self._num_bytes > MAX_BYTES or self._ends[0].done_s < made.done_s - KEPT_S):
            oldest = self._ends.popleft()
            self._num_bytes -= oldest.num_bytes
            self._tasks.pop(oldest.id, None)

    async def _drawn(
        self, caller: Caller, body: SampleBody, adapter: AdapterRef | None, all_params: list[SamplingParams]
    ) -> bytes:
        """All samples of a request, in the same batch as everyone's answers."""
        with AnswerStream(self._context, self._context.generation, caller) as stream:
            await self._reserved(stream, body.num_samples)
            await stream.start([body.prompt.tokens], adapter, all_params)
            answers = await stream.gathered()
            return sample_answer(answers, body.topk_sample_logprobs, body.num_prompt_top, stream.num_reused)

    async def _reserved(self, stream: AnswerStream, num: int) -> None:
        while True:
            try:
                return await stream.reserve(num)
            except BusyError as error:
                await asyncio.sleep(error.retry_s)
