"""Completions: /v1/completions and /v1/chat/completions, whole or as a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.generation.request import Answer, RequestOutput, SamplingParams, Token
from polyvera.errors import SamplingError
from polyvera.server.answers import SILENCE
from polyvera.server.completion_task import PING, AnswerParser, CompletionTask, EventStream, begin, finish_of
from polyvera.server.context import ServerContext
from polyvera.server.prompt_tokens import chat_tokens, prompt_tokens
from polyvera.server.requests import COMPLETION_TOKENS, PROMPT, ChatBody, CompletionBody, GenerationBody, messages_of
from polyvera.server.responses import CHAT, TEXT, EntryWriter, Json, Part, ResponseShape, TokenEntry
from polyvera.server.sse import event
from polyvera.server.tool_set import ToolSet

DONE = b"data: [DONE]\n\n"
MAX_AT_ONCE = 64  # tokens that are worded by the event loop itself
GRAMMARS_WORDS = "failed to compile JSON schema: "


@dataclass(frozen=True)
class CompletionReply:
    """A task in the words of its route. echo: what stands before each prompt's answers."""

    task: CompletionTask
    shape: ResponseShape
    echo: Sequence[str] = ()

    def head(self, kind: str) -> Json:
        """What the whole and every part begin with."""
        number = f"{self.shape.prefix}{self.task.request_id}"
        return {"id": number, "object": kind, "created": self.task.created, "model": self.task.model}

    def echoed(self, i: int) -> str:
        """The prompt's text before answer i, where it was asked for."""
        return self.echo[i // len(self.task.all_params)] if self.echo else ""

    def prompt_entries(self, i: int, scored: Sequence[Token]) -> list[TokenEntry]:
        """The entries of answer i's prompt, whose first token has no log-probability."""
        first, *_ = self.task.prompts[i // len(self.task.all_params)]
        return EntryWriter(self.task.context.token_bytes).whole((Token(first), *scored))

    def writer(self, i: int) -> EntryWriter:
        """What makes the entries of answer i's own tokens."""
        return EntryWriter(self.task.context.token_bytes, len(self.echoed(i)))

    def logprobs(self, entries: Sequence[TokenEntry]) -> Json | None:
        """Of some tokens, where they were asked for."""
        return self.shape.logprobs(entries) if self.task.all_params[0].logprobs is not None else None


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: HttpRequest) -> Response:
        body = await context.body(request, CompletionBody)
        echo: list[str] = []
        all_params = await _made(context, request, body, partial(_text_params, body))
        task = await begin(context, request, body, all_params, partial(_prompts, context, request, body, echo))
        return await _answered(CompletionReply(task, TEXT, echo), request)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: HttpRequest) -> Response:
        body = await context.body(request, ChatBody)
        return await _answered(CompletionReply(await begin_chat(context, request, body), CHAT), request)

    return router


async def begin_chat(context: ServerContext, request: HttpRequest, body: ChatBody) -> CompletionTask:
    """Asks the engine for the answers to a conversation. Raises what is wrong in the words of the client's route."""
    try:
        return await _begun(context, request, body)
    except SamplingError as error:
        raise _as_asked(error, body) from None


def _as_asked(error: SamplingError, body: ChatBody) -> SamplingError:
    if error.param == "structured_outputs" and body.structured_outputs is None:  # it was made of the tools
        why = str(error).rpartition(GRAMMARS_WORDS)[2]
        return SamplingError(f"tools: the parameters of a function cannot be followed: {why}", "tools")
    error.param = body.client_fields.get(error.param or "", error.param)
    return error


async def _begun(context: ServerContext, request: HttpRequest, body: ChatBody) -> CompletionTask:
    tokenizer = context.generation.tokenizer
    tools = ToolSet.of(body, tokenizer)
    grammar = await context.compute(request, tools.grammar, tokenizer) if tools.called else None
    form = {} if grammar is None else {"grammar": grammar, "schema": None}
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    all_params = await _made(context, request, body, partial(body.all_params, most, logprobs, **form))

    async def prompts() -> list[list[int]]:
        return [await read_chat(context, request, body, tools, most or 1)]

    return await begin(context, request, body, all_params, prompts, tools)


async def read_chat(
    context: ServerContext, request: HttpRequest, body: ChatBody, tools: ToolSet, num_asked: int
) -> list[int]:
    """The tokens of a conversation. num_asked: of the answer."""
    most = context.engine.max_context

    def given() -> dict[str, Any]:
        messages, described = tools.told(messages_of(body.messages), most)
        template = body.template(described)
        named = {"max_context": most, "num_asked": num_asked, "param": body.client_fields[PROMPT]}
        return {"messages": messages, "given": template, **named}

    return await context.read(request, chat_tokens, given)


async def _made(
    context: ServerContext, request: HttpRequest, body: GenerationBody, make: Callable[[], list[SamplingParams]]
) -> list[SamplingParams]:
    """The parameters, made beside the event loop where a grammar is made of what the client sent."""
    has_form = body.structured_outputs is not None or body.response_format is not None
    return await context.compute(request, make) if has_form else make()


def _text_params(body: CompletionBody) -> list[SamplingParams]:
    most = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    is_scored = body.echo and (body.logprobs is not None or most == 0)
    return body.all_params(most, body.logprobs, prompt_logprobs=(body.logprobs or 0) if is_scored else None)


async def _prompts(
    context: ServerContext, request: HttpRequest, body: CompletionBody, echo: list[str]
) -> list[list[int]]:
    """The tokens; echo gets the texts, where they are to be repeated."""
    tokenizer, most = context.engine.tokenizer, COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    asked = {"max_context": context.engine.max_context, "num_asked": most, "param": body.client_fields[PROMPT]}
    texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
    if texts:
        ids = await context.read(request, prompt_tokens, lambda: {"prompts": texts, **asked})
    else:
        ids = await context.compute(request, prompt_tokens, tokenizer, body.prompts, **asked)
    if body.echo:
        echo += texts or await context.compute(request, _decoded, tokenizer, ids)
    return ids


def _decoded(tokenizer: Any, prompts: Sequence[list[int]]) -> list[str]:
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]


async def _answered(reply: CompletionReply, request: HttpRequest) -> Response:
    if reply.task.body.stream:
        return EventStream(reply.task.stream, _events(reply, request))
    answers = await reply.task.answers(request)
    whole, num = partial(_whole, reply, answers), sum(len(one.tokens) + len(one.prompt) for one in answers)
    return JSONResponse(whole()) if num <= MAX_AT_ONCE else await reply.task.context.json(request, whole)


def _whole(reply: CompletionReply, answers: Sequence[Answer]) -> Json:
    choices = [_choice(reply, i, one) for i, one in enumerate(answers)]
    return {**reply.head(reply.shape.kind), "choices": choices, "usage": reply.task.usage}


def _choice(reply: CompletionReply, i: int, answer: Answer) -> Json:
    text, calls, finish_reason = reply.task.parsed(answer)
    entries = reply.writer(i).add(answer.tokens, answer.text, is_last=True)
    before = reply.prompt_entries(i, answer.prompt) if reply.task.all_params[0].prompt_logprobs is not None else []
    whole = Part(reply.echoed(i) + text, calls, reply.logprobs([*before, *entries]))
    return {"index": i, **reply.shape.choice(whole), "finish_reason": finish_reason}


async def _events(reply: CompletionReply, request: HttpRequest) -> AsyncIterator[bytes]:
    task, shape = reply.task, reply.shape
    with_usage = task.body.stream_options.include_usage
    choices = [StreamedChoice(reply, i) for i in range(len(task.stream.requests))]
    usage: Json = {"usage": None} if with_usage else {}
    task.stream.ping()

    def told(part: Json) -> bytes:
        return event({**reply.head(shape.part_kind), "choices": [part], **usage})

    def next_event(i: int, output: RequestOutput) -> bytes:
        part = choices[i].next(output)
        return b"" if part is None else told(part)

    try:
        yield PING if shape is TEXT else b"".join(told(choice.opening()) for choice in choices)
        async for i, output in task.stream.parts():
            if i == SILENCE:
                yield PING
                continue
            is_long = len(output.prompt) > MAX_AT_ONCE
            part = await task.context.compute(request, next_event, i, output) if is_long else next_event(i, output)
            if part:
                yield part
        if with_usage:
            yield event({**reply.head(shape.part_kind), "choices": [], "usage": task.usage})
    except Exception as error:  # the status is sent: it is reported as an event, and counted
        yield event(task.context.metrics.failed(error, task.request_id).body)
    yield DONE


@dataclass
class StreamedChoice:
    """One answer of a stream, part by part."""

    reply: CompletionReply
    index: int
    writer: EntryWriter = field(init=False)
    parser: AnswerParser = field(init=False)
    is_first: bool = True

    def __post_init__(self) -> None:
        self.writer, self.parser = self.reply.writer(self.index), self.reply.task.parser()

    def opening(self) -> Json:
        """The role of a chat."""
        self.is_first = False
        return {"index": self.index, **self.reply.shape.delta(Part(""), True), "finish_reason": None}

    def next(self, output: RequestOutput) -> Json | None:
        """The next part, None where there is nothing to say yet."""
        is_scored = self.is_first and self.reply.task.all_params[0].prompt_logprobs is not None
        entries = self.reply.prompt_entries(self.index, output.prompt) if is_scored else []
        entries += self.writer.add(output.tokens, output.text, is_last=output.finish_reason is not None)
        num_calls, reason = self.parser.num_calls, output.finish_reason
        found = self.parser.add(output.text, reason)
        text = (self.reply.echoed(self.index) if self.is_first else "") + found.text
        has_logprobs = bool(entries) and self.reply.logprobs(()) is not None
        if not (text or found.calls or reason or has_logprobs):
            return None
        self.is_first = False
        part = Part(text, found.calls, self.reply.logprobs(entries) if has_logprobs else None, num_calls)
        finish = finish_of(reason, self.parser.num_calls)
        return {"index": self.index, **self.reply.shape.delta(part, False), "finish_reason": finish}
