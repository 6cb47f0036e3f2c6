"""Calls: passes, optimizer steps, and what is saved and loaded, put in line as they come."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from polyvera.errors import PolyveraError, ServeError
from polyvera.jobs.training_run import LOAD, OPTIMIZER_STEP, SAVE, SAVE_FOR_SAMPLER, RunOperation
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.error_response import error_response
from polyvera.server.routes.tinker.bodies import (
    CallBody,
    CallPlace,
    LoadWeightsBody,
    OptimStepBody,
    SaveForSamplerBody,
    SaveWeightsBody,
)
from polyvera.server.routes.tinker.pass_message import AskedPass, read_pass
from polyvera.server.routes.tinker.runs import load_run, submitted

PROTOBUF = "application/x-protobuf"
C = TypeVar("C", bound=BaseModel)


def add_calls(router: APIRouter, context: ServerContext) -> None:
    """What a run is asked to do."""

    @router.post("/forward_backward")
    async def forward_backward(request: HttpRequest) -> dict[str, Any]:
        if request.headers.get("content-type", "").partition(";")[0].strip() != PROTOBUF:
            raise HTTPException(415, f"send Content-Type: {PROTOBUF}, as tinker does")
        asked: AskedPass = await context.run(request, read_pass, await request.body())
        given = (asked.run, asked.seq, asked.kind, asked.request, asked.rows, asked.error)
        tenant, operations = caller_of(request).tenant, context.training.operations
        return submitted(await context.run(request, operations.submit, tenant, *given))

    @router.post("/optim_step")
    async def optim_step(request: HttpRequest) -> dict[str, Any]:
        body = await _asked(context, request, OptimStepBody, OPTIMIZER_STEP)
        return submitted(await _submit(context, request, body, OPTIMIZER_STEP, body.adam_params.model_dump()))

    @router.post("/save_weights")
    async def save_weights(request: HttpRequest) -> dict[str, Any]:
        body = await _asked(context, request, SaveWeightsBody, SAVE)
        asked = {**_kept(body), "overwrite": body.overwrite}
        return submitted(await _submit(context, request, body, SAVE, asked))

    @router.post("/save_weights_for_sampler")
    async def save_weights_for_sampler(request: HttpRequest) -> dict[str, Any]:
        body = await _asked(context, request, SaveForSamplerBody, SAVE_FOR_SAMPLER)
        number = body.sampling_session_seq_id
        asked = {**_kept(body), "is_named": body.path is not None, "sampling_session_seq_id": number}
        return submitted(await _submit(context, request, body, SAVE_FOR_SAMPLER, asked))

    @router.post("/load_weights")
    async def load_weights(request: HttpRequest) -> dict[str, Any]:
        body = await _asked(context, request, LoadWeightsBody, LOAD)
        if body.model_id is None:
            return await load_run(context, request, body)
        asked = {"path": body.path, "optimizer": body.optimizer}
        call = CallBody(model_id=body.model_id, seq_id=body.seq_id)
        return submitted(await _submit(context, request, call, LOAD, asked))


async def _asked(context: ServerContext, request: HttpRequest, kind: type[C], call: str) -> C:
    """The body of a call. One of JSON that is refused has its place among the run's calls: others wait behind it."""
    data = await context.json_data(request)
    try:
        return await context.read_json(request, data, kind)
    except (ValidationError, ServeError) as error:
        with suppress(PolyveraError, ValidationError):
            place = await context.compute(request, CallPlace.model_validate_json, data)
            why = error_response(error, request.state.request_id).message
            at = (caller_of(request).tenant, place.model_id, place.seq_id)
            await context.run(request, context.training.operations.submit, *at, call, {}, error=why)
        raise


async def _submit(
    context: ServerContext, request: HttpRequest, body: CallBody, kind: str, asked: dict[str, Any]
) -> RunOperation:
    tenant, operations = caller_of(request).tenant, context.training.operations
    seq = body.seq_id or None  # 0 is that of a run's beginning, and says nothing here
    return await context.run(request, operations.submit, tenant, body.model_id, seq, kind, asked)


def _kept(body: SaveWeightsBody | SaveForSamplerBody) -> dict[str, Any]:
    name = body.path or f"unnamed-{body.seq_id or 0:06d}"
    return {"name": name, "ttl_seconds": body.ttl_seconds, "user_metadata": dict(body.user_metadata)}
