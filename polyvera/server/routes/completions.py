"""Completions: /v1/completions and /v1/chat/completions, whole or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
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

from polyvera.engine.generation.request import Sampling, Token
from polyvera.errors import PolyveraError, SamplingError, ServeError
from polyvera.model.prompt import chat_ids, prompt_ids
from polyvera.server.answers import Work
from polyvera.server.context import Front, body_of, caller_of
from polyvera.server.error_response import problem_of
from polyvera.server.requests import ChatBody, Choices, CompletionBody, messages_of
from polyvera.server.responses import CHAT, TEXT, Json, Wording

DONE = b"data: [DONE]\n\n"
EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Asked:
    """A request understood. echo: what stands before each answer."""

    front: Front
    wording: Wording
    body: Choices
    model: str
    request_id: str
    prompts: Sequence[list[int]]
    samplings: Sequence[Sampling]
    echo: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time()))

    def head(self, kind: str) -> Json:
        """What the whole and every part begin with."""
        number = f"{self.wording.prefix}{self.request_id}"
        return {"id": number, "object": kind, "created": self.created, "model": self.model}

    def echoed(self, i: int) -> str:
        """The prompt's text before answer i, where it was asked for."""
        return self.echo[i // len(self.samplings)] if self.echo else ""

    def logprobs(self, tokens: Sequence[Token], at: int = 0) -> Json | None:
        """Of some tokens, where they were asked for."""
        if self.samplings[0].logprobs is None:
            return None
        return self.wording.logprobs(tokens, self._text, at)

    def _text(self, token: int) -> str:
        return str(self.front.engine.tokenizer.decode([token]))


def routes(front: Front) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: HttpRequest) -> Response:
        body = await body_of(request, CompletionBody)
        default = 16 if body.max_tokens is None else body.max_tokens
        return await _answered(front, request, TEXT, body, body.samplings(default, body.logprobs))

    @router.post("/v1/chat/completions")
    async def chat_completions(request: HttpRequest) -> Response:
        body = await body_of(request, ChatBody)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        most = body.max_completion_tokens or body.max_tokens
        return await _answered(front, request, CHAT, body, body.samplings(most, logprobs))

    return router


async def _answered(
    front: Front, request: HttpRequest, wording: Wording, body: Choices, samplings: Sequence[Sampling]
) -> Response:
    if not front.writes:
        raise ServeError(f"this server runs {front.catalog.base}, an encoder: ask /v1/embeddings or /v1/classify")
    caller = caller_of(request)
    adapter = await asyncio.to_thread(front.catalog.resolve, caller, body.model)
    prompts, echo = await asyncio.to_thread(_prompts, front, body)
    num = len(prompts) * len(samplings)
    if num > front.settings.max_choices:
        raise SamplingError(f"n and prompt ask for {num} answers; at most {front.settings.max_choices} a request")
    model = front.catalog.base if adapter is None else str(adapter)
    asked = Asked(front, wording, body, model, request.state.request_id, prompts, samplings, echo)
    with ExitStack() as stack:
        work = stack.enter_context(Work(front, caller.tenant))
        await work.start(prompts, adapter, samplings)
        if not body.stream:
            return await _whole(asked, work, request)
        stack.pop_all()  # it is the stream's now
        return Events(asked, work)


def _prompts(front: Front, body: Choices) -> tuple[list[list[int]], list[str]]:
    tokenizer = front.engine.tokenizer
    if isinstance(body, ChatBody):
        return [chat_ids(tokenizer, messages_of(body.messages))], []
    assert isinstance(body, CompletionBody)
    ids = [p if isinstance(p, list) else prompt_ids(tokenizer, p) for p in body.prompts]
    if not ids:
        raise SamplingError("prompt: the list is empty, there is nothing to answer")
    if not body.echo:
        return ids, []
    texts = [p if isinstance(p, str) else tokenizer.decode(p, skip_special_tokens=True) for p in body.prompts]
    return ids, texts


async def _whole(asked: Asked, work: Work, request: HttpRequest) -> Response:
    told = await work.whole(request)
    choices = []
    for i, one in enumerate(told):
        fields = asked.wording.choice(asked.echoed(i) + one.text, asked.logprobs(one.tokens))
        choices.append({"index": i, **fields, "finish_reason": one.finish})
    return JSONResponse({**asked.head(asked.wording.kind), "choices": choices, "usage": _usage(work)})


class Events(StreamingResponse):
    """A streamed answer: an ASGI response that ends its work however it ends itself."""

    def __init__(self, asked: Asked, work: Work) -> None:
        self._asked, self._work = asked, work
        self._is_first = dict.fromkeys(range(len(work.requests)), True)
        self._at = {i: len(asked.echoed(i)) for i in self._is_first}
        super().__init__(self._events(), media_type="text/event-stream", headers=EVENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        with self._work:
            await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        asked = self._asked
        with_usage = asked.body.stream_options.include_usage
        try:
            async for i, output in self._work.parts():
                if output.tokens or output.text or output.finish:
                    yield _event(self._part(i, output.tokens, output.text, output.finish, with_usage))
            if with_usage:
                yield _event({**asked.head(asked.wording.part_kind), "choices": [], "usage": _usage(self._work)})
        except PolyveraError as error:
            yield _event(problem_of(error, asked.request_id).body)
        yield DONE

    def _part(self, i: int, tokens: Sequence[Token], text: str, finish: str | None, with_usage: bool) -> Json:
        asked, is_first = self._asked, self._is_first[i]
        self._is_first[i] = False
        logprobs = asked.logprobs(tokens, self._at[i]) if tokens else None
        self._at[i] += len(text)
        fields = asked.wording.part((asked.echoed(i) if is_first else "") + text, logprobs, is_first)
        choice = {"index": i, **fields, "finish_reason": finish}
        return {**asked.head(asked.wording.part_kind), "choices": [choice], **({"usage": None} if with_usage else {})}


def _usage(work: Work) -> Json:
    prompt, answer = work.num_prompt_tokens, work.num_answer_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": work.num_reused},
    }


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
