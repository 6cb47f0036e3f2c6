"""Samplers: sessions that sample with the base or with saved weights, in the same batch as everyone's requests."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from polyvera.errors import ForbiddenError, ServeError
from polyvera.jobs.sampler_table import SamplingSession
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.tinker.bodies import SampleBody, SamplingSessionBody
from polyvera.server.routes.tinker.runs import check_base, tokenizer_of
from polyvera.server.routes.tinker.sample_tasks import SampleTasks
from polyvera.store.reference import AdapterRef


def add_samplers(router: APIRouter, context: ServerContext, samples: SampleTasks) -> None:
    """How tokens are sampled."""

    @router.post("/create_sampling_session")
    async def create_sampling_session(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, SamplingSessionBody)
        adapter = await _adapter(context, request, body)
        given = (body.session_id, body.sampling_session_seq_id, body.model_path, adapter)
        samplers, tenant = context.training.samplers, caller_of(request).tenant
        made: SamplingSession = await context.run(request, samplers.create, tenant, *given)
        return {"sampling_session_id": made.id, "type": "create_sampling_session"}

    @router.get("/samplers/{id}")
    async def sampler(request: HttpRequest, id: str) -> dict[str, Any]:
        found = await context.run(request, context.training.samplers.get, caller_of(request).tenant, id)
        base = tokenizer_of(context) or context.catalog.base  # by which the SDK looks for a tokenizer
        return {"sampler_id": found.id, "base_model": base, "model_path": found.path}

    @router.post("/asample")
    async def asample(request: HttpRequest) -> dict[str, Any]:
        body, caller = await context.body(request, SampleBody), caller_of(request)
        samplers = context.training.samplers
        found = await context.run(request, samplers.get, caller.tenant, body.sampling_session_id)
        adapter: AdapterRef | None = None
        if found.adapter is not None:
            adapter = await context.run(request, context.catalog.find, caller, found.adapter)
        id = samples.submit(request, body, adapter)
        return {"request_id": id, "sample_sequence_ids": [f"{id}:{i}" for i in range(body.num_samples)]}


async def _adapter(context: ServerContext, request: HttpRequest, body: SamplingSessionBody) -> str | None:
    """The reference of what is sampled with, None for the base. Raises ServeError, ForbiddenError."""
    caller = caller_of(request)
    if body.base_model is not None:
        check_base(context, body.base_model)
    if body.model_path is None:
        if not caller.base:
            raise ForbiddenError("this API key may sample with adapters only, not with the bare base model")
        return None
    saved = await context.run(request, context.training.weights.get, caller.tenant, body.model_path)
    if saved.adapter is None:
        raise ServeError(f"{saved.path} is to train from: sample with what save_weights_for_sampler() saved")
    return saved.adapter
