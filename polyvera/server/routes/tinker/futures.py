"""Futures: the answers to what was asked for, for which a client waits in long polls."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.errors import PolyveraError, UnknownObjectError
from polyvera.jobs.training_run import LOAD, LOAD_RUN, RunOperation
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.tinker.answer_messages import pass_answer
from polyvera.server.routes.tinker.bodies import FutureBody
from polyvera.server.routes.tinker.calls import PROTOBUF
from polyvera.server.routes.tinker.operation_watch import OperationWatch
from polyvera.server.routes.tinker.sample_tasks import PREFIX, SampleTasks

POLL_S = 20.0  # the SDK waits for 45
PENDING, GONE = 408, 410  # asked for again at once; asked for anew
USER, SERVER = "user", "server"
TYPES = {LOAD_RUN: LOAD}  # what the SDK calls an answer


def add_futures(router: APIRouter, context: ServerContext, samples: SampleTasks, watch: OperationWatch) -> None:
    """How answers are fetched."""

    @router.post("/retrieve_future")
    async def retrieve_future(request: HttpRequest) -> Response:
        id = (await context.body(request, FutureBody)).request_id
        if id.startswith(PREFIX):
            return await _sampled(context, request, samples, id)
        tenant, operations = caller_of(request).tenant, context.training.operations
        found, logprobs = await context.run(request, operations.get, tenant, id)
        if found.done_s is None:
            await watch.wait(id, POLL_S)
            found, logprobs = await context.run(request, operations.get, tenant, id)
        return await context.run(request, answered, found, logprobs)

    @router.post("/cancel_future")
    async def cancel_future(request: HttpRequest) -> dict[str, Any]:
        id = (await context.body(request, FutureBody)).request_id
        if id.startswith(PREFIX):
            samples.cancel(caller_of(request).tenant, id)
        return {}


def answered(found: RunOperation, logprobs: bytes | None) -> Response:
    """What a call gave, or that it has not."""
    if found.done_s is None:
        return pending(found.id)
    if found.error is not None:
        return JSONResponse({"error": found.error, "category": USER if found.is_users else SERVER})
    if logprobs is not None:
        return Response(pass_answer((found.answer or {})["loss"], logprobs), media_type=PROTOBUF)
    return JSONResponse({**(found.answer or {}), "type": TYPES.get(found.kind, found.kind)})


def pending(id: str) -> Response:
    """To be asked for again."""
    return JSONResponse({"type": "try_again", "request_id": id, "queue_state": "active"}, PENDING)


async def _sampled(context: ServerContext, request: HttpRequest, samples: SampleTasks, id: str) -> Response:
    try:
        found = await samples.wait(caller_of(request).tenant, id, POLL_S)
    except UnknownObjectError as error:  # of a server before this one: it is asked for anew
        return JSONResponse({"error": str(error)}, GONE)
    except PolyveraError as error:
        told = context.metrics.failed(error, request.state.request_id)
        return JSONResponse({"error": told.message, "category": USER if told.status < 500 else SERVER})
    return pending(id) if found is None else Response(found, media_type=PROTOBUF)
