"""Messages: /v1/messages in Anthropic's words, whole or as a stream of its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.generation.request import LENGTH
from polyvera.server.answers import SILENCE
from polyvera.server.completion_task import CompletionTask, EventStream
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.message_body import CountBody, MessageBody
from polyvera.server.responses import Json
from polyvera.server.routes.completions import begin_chat, read_chat
from polyvera.server.sse import named_event
from polyvera.server.tool_parser import Parsed, ToolCall
from polyvera.server.tool_set import ToolSet
from polyvera.strict_json import JsonError, loads

PING = named_event("ping", {"type": "ping"})


def routes(context: ServerContext) -> APIRouter:
    """The endpoint, and the one that counts its tokens."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: HttpRequest) -> Response:
        body = await context.body(request, MessageBody)
        task = await begin_chat(context, request, await context.compute(request, lambda: body.chat))
        reply = MessageReply(task, body)
        if body.stream:
            return EventStream(task.stream, _events(reply))
        [answer] = await task.answers(request)
        text, calls, _ = task.parsed(answer)
        reply.add(Parsed(text, calls))
        ended = reply.ended(answer.finish_reason, answer.ids, len(calls), answer.text)
        return JSONResponse({**reply.begun, "content": reply.content, **ended, "usage": reply.usage})

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: HttpRequest) -> dict[str, int]:
        body = await context.body(request, CountBody)
        await context.run(request, context.catalog.resolve, caller_of(request), body.model)
        chat = await context.compute(request, lambda: body.chat)
        tools = ToolSet.of(chat, context.generation.tokenizer)
        return {"input_tokens": len(await read_chat(context, request, chat, tools, 0))}

    return router


@dataclass
class MessageReply:
    """One message, as far as it is made. content: its blocks."""

    task: CompletionTask
    body: MessageBody
    content: list[Json] = field(default_factory=list)

    @property
    def begun(self) -> Json:
        """The message before it says anything."""
        empty: Json = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self.usage, "output_tokens": 0},
        }
        head = {"id": f"msg_{self.task.request_id}", "type": "message", "role": "assistant", "model": self.task.model}
        return {**head, **empty}

    @property
    def usage(self) -> Json:
        """Tokens so far."""
        stream = self.task.stream
        return {
            "input_tokens": stream.num_prompt_tokens - stream.num_reused,
            "cache_read_input_tokens": stream.num_reused,
            "cache_creation_input_tokens": 0,
            "output_tokens": stream.num_answer_tokens,
        }

    def ended(self, reason: str | None, ids: list[int], num_calls: int, text: str) -> Json:
        """Why it ended, and by which of the texts that end it."""
        if reason == LENGTH:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if num_calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        stop = self._stop(ids, text) if self.body.stop_sequences else None
        return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop}

    def _stop(self, ids: list[int], text: str) -> str | None:
        whole = self.task.context.engine.tokenizer.decode(ids, skip_special_tokens=True)
        rest = whole[len(text) :]
        return next((stop for stop in self.body.stop_sequences if rest.startswith(stop)), None)

    def add(self, part: Parsed) -> list[Json]:
        """Takes in what a part adds: the data of the events that tell it."""
        told = self._said(part.text) if part.text else []
        for call in part.calls:
            told += [*self.end_text(), *self._called(call)]
        return told

    def end_text(self) -> list[Json]:
        """The event that ends a block of text, where one is open."""
        is_open = bool(self.content) and self.content[-1]["type"] == "text"
        return [{"type": "content_block_stop", "index": len(self.content) - 1}] if is_open else []

    def _said(self, text: str) -> list[Json]:
        told: list[Json] = []
        if not self.content or self.content[-1]["type"] != "text":
            block = {"type": "text", "text": ""}
            told = [{"type": "content_block_start", "index": len(self.content), "content_block": block}]
            self.content.append({**block})
        self.content[-1]["text"] += text
        delta = {"type": "text_delta", "text": text}
        return [*told, {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}]

    def _called(self, call: ToolCall) -> list[Json]:
        at, block = len(self.content), {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        self.content.append({**block, "input": _input(call.arguments)})
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        return [
            {"type": "content_block_start", "index": at, "content_block": block},
            {"type": "content_block_delta", "index": at, "delta": delta},
            {"type": "content_block_stop", "index": at},
        ]


async def _events(reply: MessageReply) -> AsyncIterator[bytes]:
    task, parser = reply.task, reply.task.parser()
    reason, ids, text = None, [], ""
    task.stream.ping()
    try:
        yield named_event("message_start", {"type": "message_start", "message": reply.begun})
        async for i, output in task.stream.parts():
            if i == SILENCE:
                yield PING
                continue
            reason, text = output.finish_reason, text + output.text
            ids += [token.id for token in output.tokens]
            for data in reply.add(parser.add(output.text, reason)):
                yield named_event(data["type"], data)
        for data in reply.end_text():
            yield named_event(data["type"], data)
        delta = reply.ended(reason, ids, parser.num_calls, text)
        yield named_event("message_delta", {"type": "message_delta", "delta": delta, "usage": reply.usage})
        yield named_event("message_stop", {"type": "message_stop"})
    except Exception as error:  # the status is sent: it is reported as an event, and counted
        failed = task.context.metrics.failed(error, task.request_id)
        yield named_event("error", failed.anthropic_body)


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; nothing where they are no object of JSON, such as those of an answer that was cut off."""
    try:
        found = loads(arguments)
    except JsonError:
        return {}
    return found if isinstance(found, dict) else {}
