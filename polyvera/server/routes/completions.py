"""Completions: /v1/completions and /v1/chat/completions, whole or as a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from polyvera.engine.generation.request import SamplingParams, Token
from polyvera.errors import SamplingError
from polyvera.server.answers import SILENCE, AnswerStream, while_there
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.prompt_tokens import chat_tokens, prompt_tokens
from polyvera.server.requests import COMPLETION_TOKENS, ChatBody, CompletionBody, GenerationBody, messages_of
from polyvera.server.responses import CHAT, TEXT, Json, ResponseShape

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"  # a comment, which clients skip
EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class CompletionTask:
    """A request understood. echo: what stands before each answer."""

    context: ServerContext
    shape: ResponseShape
    body: GenerationBody
    model: str
    request_id: str
    prompts: Sequence[list[int]]
    all_params: Sequence[SamplingParams]
    echo: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time()))

    def head(self, kind: str) -> Json:
        """What the whole and every part begin with."""
        number = f"{self.shape.prefix}{self.request_id}"
        return {"id": number, "object": kind, "created": self.created, "model": self.model}

    def echoed(self, i: int) -> str:
        """The prompt's text before answer i, where it was asked for."""
        return self.echo[i // len(self.all_params)] if self.echo else ""

    def logprobs(self, tokens: Sequence[Token], at: int = 0) -> Json | None:
        """Of some tokens, where they were asked for."""
        if self.all_params[0].logprobs is None:
            return None
        return self.shape.logprobs(tokens, self._text, at)

    def _text(self, token: int) -> str:
        return str(self.context.engine.tokenizer.decode([token]))


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: HttpRequest) -> Response:
        body = await context.body(request, CompletionBody)
        default = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        return await _answered(context, request, TEXT, body, body.all_params(default, body.logprobs))

    @router.post("/v1/chat/completions")
    async def chat_completions(request: HttpRequest) -> Response:
        body = await context.body(request, ChatBody)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        return await _answered(context, request, CHAT, body, body.all_params(most, logprobs))

    return router


async def _answered(
    context: ServerContext,
    request: HttpRequest,
    shape: ResponseShape,
    body: GenerationBody,
    all_params: Sequence[SamplingParams],
) -> Response:
    engine, caller = context.generation, caller_of(request)
    num = _num_answers(context, body)
    with ExitStack() as stack:
        stream = stack.enter_context(AnswerStream(context, engine, caller))
        await while_there(request, stream.reserve(num))
        adapter = await context.run(request, context.catalog.resolve, caller, body.model)
        prompts, echo = await while_there(request, context.run(request, _prompts, context, body, all_params[0]))
        model = context.catalog.name_of(adapter)
        asked = CompletionTask(context, shape, body, model, request.state.request_id, prompts, all_params, echo)
        await while_there(request, stream.start(prompts, adapter, all_params))
        if not body.stream:
            return await _whole(asked, stream, request)
        stack.pop_all()  # it is the stream's now
        return EventStream(asked, stream)


def _num_answers(context: ServerContext, body: GenerationBody) -> int:
    """Of all prompts. Raises SamplingError for more than a request may ask for."""
    num, most = body.n * body.num_prompts, context.config.max_choices
    if num > most:
        param = "n" if body.n > most else body.prompt_field
        raise SamplingError(
            f"n={body.n} answers for each of {body.num_prompts} prompts are {num}; at most {most} a request", param
        )
    return num


def _prompts(
    context: ServerContext, body: GenerationBody, params: SamplingParams
) -> tuple[list[list[int]], Sequence[str]]:
    tokenizer, most, num_asked = context.engine.tokenizer, context.engine.max_context, params.max_tokens or 1
    if isinstance(body, ChatBody):
        return [chat_tokens(tokenizer, messages_of(body.messages), most, num_asked)], ()
    assert isinstance(body, CompletionBody)
    ids = prompt_tokens(tokenizer, body.prompts, most, num_asked, body.prompt_field)
    if not body.echo:
        return ids, ()
    return ids, [p if isinstance(p, str) else tokenizer.decode(p, skip_special_tokens=True) for p in body.prompts]


async def _whole(asked: CompletionTask, stream: AnswerStream, request: HttpRequest) -> Response:
    answers = await stream.whole(request)
    choices = []
    for i, one in enumerate(answers):
        fields = asked.shape.choice(asked.echoed(i) + one.text, asked.logprobs(one.tokens))
        choices.append({"index": i, **fields, "finish_reason": one.finish_reason})
    return JSONResponse({**asked.head(asked.shape.kind), "choices": choices, "usage": _usage(stream)})


class EventStream(StreamingResponse):
    """A streamed answer: an ASGI response that ends its answers however it ends itself."""

    def __init__(self, asked: CompletionTask, stream: AnswerStream) -> None:
        self._asked, self._stream = asked, stream
        self._is_first = dict.fromkeys(range(len(stream.requests)), True)
        self._at = {i: len(asked.echoed(i)) for i in self._is_first}
        super().__init__(self._events(), media_type="text/event-stream", headers=EVENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        with self._stream:
            await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        asked = self._asked
        with_usage = asked.body.stream_options.include_usage
        self._stream.ping()
        try:
            yield self._opening(with_usage)
            async for i, output in self._stream.parts():
                if i == SILENCE:
                    yield PING
                elif output.tokens or output.text or output.finish_reason:
                    yield _event(self._part(i, output.tokens, output.text, output.finish_reason, with_usage))
            if with_usage:
                yield _event({**asked.head(asked.shape.part_kind), "choices": [], "usage": _usage(self._stream)})
        except Exception as error:  # the status is sent: it is reported as an event, and counted
            yield _event(asked.context.metrics.failed(error, asked.request_id).body)
        yield DONE

    def _opening(self, with_usage: bool) -> bytes:
        """What says at once that the request was taken on: the roles of a chat, a comment where there is none."""
        if self._asked.shape is TEXT:
            return PING
        return b"".join(_event(self._part(i, (), "", None, with_usage)) for i in self._is_first)

    def _part(self, i: int, tokens: Sequence[Token], text: str, finish_reason: str | None, with_usage: bool) -> Json:
        asked, is_first = self._asked, self._is_first[i]
        self._is_first[i] = False
        logprobs = asked.logprobs(tokens, self._at[i]) if tokens else None
        self._at[i] += len(text)
        fields = asked.shape.part((asked.echoed(i) if is_first else "") + text, logprobs, is_first)
        choice = {"index": i, **fields, "finish_reason": finish_reason}
        return {**asked.head(asked.shape.part_kind), "choices": [choice], **({"usage": None} if with_usage else {})}


def _usage(stream: AnswerStream) -> Json:
    prompt, answer = stream.num_prompt_tokens, stream.num_answer_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": stream.num_reused},
    }


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
