"""Responses: /v1/responses, whole or as a stream of its events. Nothing is kept of a response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.generation.request import LENGTH
from polyvera.server.answers import SILENCE
from polyvera.server.completion_task import PING, CompletionTask, EventStream
from polyvera.server.context import ServerContext
from polyvera.server.response_body import ResponseBody
from polyvera.server.responses import Json
from polyvera.server.routes.completions import begin_chat
from polyvera.server.sse import named_event
from polyvera.server.tool_parser import Parsed, ToolCall

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"


def routes(context: ServerContext) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(request: HttpRequest) -> Response:
        body = await context.body(request, ResponseBody)
        task = await begin_chat(context, request, await context.compute(request, lambda: body.chat))
        reply = ResponseReply(task, body)
        if body.stream:
            return EventStream(task.stream, _events(reply))
        [answer] = await task.answers(request)
        text, calls, _ = task.parsed(answer)
        reply.add(Parsed(text, calls))
        reply.end_text()
        return JSONResponse(reply.whole(INCOMPLETE if answer.finish_reason == LENGTH else COMPLETED))

    return router


@dataclass
class ResponseReply:
    """One response, as far as it is made. items: its output."""

    task: CompletionTask
    body: ResponseBody
    items: list[Json] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def whole(self, status: str, error: Json | None = None) -> Json:
        """The response in a state of its."""
        body, is_cut = self.body, status == INCOMPLETE
        return {
            "id": f"resp_{self.task.request_id}",
            "object": "response",
            "created_at": self.task.created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self.task.model,
            "output": self.items,
            "usage": None if status == IN_PROGRESS else self._usage,
            **_settings(body),
        }

    def add(self, part: Parsed) -> list[tuple[str, Json]]:
        """Takes in what a part adds: the names and data of the events that tell it."""
        told = self._said(part.text) if part.text else []
        for call in part.calls:
            told += [*self.end_text(), *self._called(call)]
        return told

    def end_text(self) -> list[tuple[str, Json]]:
        """The events that end a message, where one is open."""
        if not self.items or self.items[-1]["status"] != IN_PROGRESS:
            return []
        at, item = len(self.items) - 1, self.items[-1]
        item["status"] = COMPLETED
        [part] = item["content"]
        where: Json = {"item_id": item["id"], "output_index": at, "content_index": 0}
        return [
            ("response.output_text.done", {**where, "text": part["text"], "logprobs": []}),
            ("response.content_part.done", {**where, "part": part}),
            ("response.output_item.done", {"output_index": at, "item": item}),
        ]

    def event(self, name: str, data: Json) -> bytes:
        """One event of the stream."""
        return named_event(name, {"type": name, "sequence_number": next(self._numbers), **data})

    def _said(self, text: str) -> list[tuple[str, Json]]:
        told: list[tuple[str, Json]] = []
        if not self.items or self.items[-1]["status"] != IN_PROGRESS:
            number = f"msg_{self.task.request_id}_{len(self.items)}"
            item = {"id": number, "type": "message", "role": "assistant", "status": IN_PROGRESS, "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            where = {"item_id": number, "output_index": len(self.items), "content_index": 0}
            told = [
                ("response.output_item.added", {"output_index": len(self.items), "item": {**item}}),
                ("response.content_part.added", {**where, "part": {**part}}),
            ]
            self.items.append({**item, "content": [part]})
        at, last = len(self.items) - 1, self.items[-1]
        last["content"][0]["text"] += text
        where = {"item_id": last["id"], "output_index": at, "content_index": 0}
        return [*told, ("response.output_text.delta", {**where, "delta": text, "logprobs": []})]

    def _called(self, call: ToolCall) -> list[tuple[str, Json]]:
        at, number = len(self.items), f"fc_{call.id.removeprefix('call_')}"
        item = {"id": number, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
        where = {"item_id": number, "output_index": at}
        whole = {**item, "arguments": call.arguments, "status": COMPLETED}
        self.items.append(whole)
        return [
            ("response.output_item.added", {"output_index": at, "item": {**item, "status": IN_PROGRESS}}),
            ("response.function_call_arguments.delta", {**where, "delta": call.arguments}),
            ("response.function_call_arguments.done", {**where, "name": call.name, "arguments": call.arguments}),
            ("response.output_item.done", {"output_index": at, "item": whole}),
        ]

    @property
    def _usage(self) -> Json:
        stream = self.task.stream
        num_prompt, num_answer = stream.num_prompt_tokens, stream.num_answer_tokens
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": stream.num_reused},
            "output_tokens": num_answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_answer,
        }


async def _events(reply: ResponseReply) -> AsyncIterator[bytes]:
    task, parser, status = reply.task, reply.task.parser(), COMPLETED
    task.stream.ping()
    try:
        for name in ("response.created", "response.in_progress"):
            yield reply.event(name, {"response": reply.whole(IN_PROGRESS)})
        async for i, output in task.stream.parts():
            if i == SILENCE:
                yield PING
                continue
            status = INCOMPLETE if output.finish_reason == LENGTH else COMPLETED
            for name, data in reply.add(parser.add(output.text, output.finish_reason)):
                yield reply.event(name, data)
        for name, data in reply.end_text():
            yield reply.event(name, data)
        yield reply.event(f"response.{status}", {"response": reply.whole(status)})
    except Exception as error:  # the status is sent: it is reported as an event, and counted
        failed = task.context.metrics.failed(error, task.request_id)
        told = {"code": failed.code or failed.type, "message": failed.message}
        yield reply.event("response.failed", {"response": reply.whole(FAILED, told)})


def _settings(body: ResponseBody) -> Json:
    """What was asked for, as it holds."""
    dumped: Any = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": dumped["text"].get("format", {"type": "text"})},
        "tool_choice": dumped.get("tool_choice", "auto"),
        "tools": dumped["tools"],
        "top_p": body.top_p,
        "truncation": "disabled",
    }
