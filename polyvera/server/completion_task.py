"""CompletionTask: a request for text, understood and under way, whatever the words of its route."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import time
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from polyvera.engine.generation.request import LENGTH, STOP, Answer, SamplingParams
from polyvera.errors import SamplingError
from polyvera.server.answers import AnswerStream, while_there
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.requests import PROMPT, GenerationBody
from polyvera.server.responses import Json
from polyvera.server.tool_parser import Parsed, ToolCall, ToolParser
from polyvera.server.tool_set import ToolSet

PING = b": ping\n\n"  # a comment, which clients skip
EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class CompletionTask:
    """model: what answers. prompts: tokens of each. all_params: of each of a prompt's answers. tools: of a chat."""

    context: ServerContext
    body: GenerationBody
    model: str
    request_id: str
    prompts: Sequence[list[int]]
    all_params: Sequence[SamplingParams]
    stream: AnswerStream
    tools: ToolSet | None = None
    created: int = field(default_factory=lambda: int(time()))

    async def answers(self, request: HttpRequest) -> list[Answer]:
        """All answers, whole."""
        with self.stream:
            return await self.stream.whole(request)

    def parsed(self, answer: Answer) -> tuple[str, tuple[ToolCall, ...], str | None]:
        """(text, calls, why it ended) of a whole answer."""
        found = self.parser().add(answer.text, answer.finish_reason or STOP)
        return found.text, found.calls, finish_of(answer.finish_reason, len(found.calls))

    def parser(self) -> AnswerParser:
        """Of one answer."""
        return AnswerParser(self.tools.parser(), self.tools.most) if self.tools else AnswerParser(None)

    @property
    def usage(self) -> Json:
        """Tokens, as chats and completions report them."""
        prompt, answer = self.stream.num_prompt_tokens, self.stream.num_answer_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": self.stream.num_reused},
        }


@dataclass
class AnswerParser:
    """The calls and the text of one answer, as it comes.

    parser: None where there is nothing to call. most: calls that are wanted, None for any number. num_calls: so far.
    """

    parser: ToolParser | None
    most: int | None = None
    num_calls: int = 0

    def add(self, text: str, finish_reason: str | None) -> Parsed:
        """What the next text adds, and at the end what was held back."""
        if self.parser is None:
            return Parsed(text)
        found = self.parser.add(text)
        if finish_reason is not None:
            last = self.parser.finish(is_cut=finish_reason == LENGTH)
            found = Parsed(found.text + last.text, (*found.calls, *last.calls))
        calls = found.calls if self.most is None else found.calls[: self.most - self.num_calls]
        self.num_calls += len(calls)
        return Parsed(found.text, calls)


async def begin(
    context: ServerContext,
    request: HttpRequest,
    body: GenerationBody,
    all_params: Sequence[SamplingParams],
    read_prompts: Callable[[], Coroutine[Any, Any, list[list[int]]]],
    tools: ToolSet | None = None,
) -> CompletionTask:
    """Asks the engine. The task's stream is the caller's to close. read_prompts: the tokens of each prompt."""
    engine, caller = context.generation, caller_of(request)
    num = _num_answers(context, body)
    with ExitStack() as stack:
        stream = stack.enter_context(AnswerStream(context, engine, caller))
        await while_there(request, stream.reserve(num))
        adapter = await context.run(request, context.catalog.resolve, caller, body.model)
        prompts = await while_there(request, read_prompts())
        await while_there(request, stream.start(prompts, adapter, all_params))
        stack.pop_all()  # it is the task's now
    model = context.catalog.name_of(adapter)
    return CompletionTask(context, body, model, request.state.request_id, prompts, all_params, stream, tools)


def finish_of(reason: str | None, num_calls: int) -> str | None:
    """Why an answer ended, where it may have called tools."""
    return TOOL_CALLS if num_calls and reason == STOP else reason


class EventStream(StreamingResponse):
    """A streamed answer: an ASGI response that ends its answers however it ends itself."""

    def __init__(self, stream: AnswerStream, events: AsyncIterator[bytes]) -> None:
        self._stream = stream
        super().__init__(events, media_type="text/event-stream", headers=EVENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        with self._stream:
            await super().__call__(scope, receive, send)


def _num_answers(context: ServerContext, body: GenerationBody) -> int:
    """Of all prompts. Raises SamplingError for more than a request may ask for."""
    num, most = body.n * body.num_prompts, context.config.max_choices
    if num > most:
        param = "n" if body.n > most else body.client_fields[PROMPT]
        raise SamplingError(
            f"n={body.n} answers for each of {body.num_prompts} prompts are {num}; at most {most} a request", param
        )
    return num
