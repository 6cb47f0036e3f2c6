"""Checkpoints: what runs saved, listed, described and deleted."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.errors import ForbiddenError, NotFoundError
from polyvera.jobs.saved_weights import SCHEME
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.adapters import remove_adapter
from polyvera.server.routes.tinker.bodies import LifetimeBody, WeightsPathBody
from polyvera.server.routes.tinker.runs import OPTIMIZER, cursor, shown_weights
from polyvera.server.routes.tinker.sessions import Limit, Offset

RUN = "/training_runs/{id}/checkpoints"
ONE = RUN + "/{checkpoint:path}"


def add_checkpoints(router: APIRouter, context: ServerContext) -> None:
    """What can be done with saved weights."""

    @router.post("/weights_info")
    async def weights_info(request: HttpRequest) -> dict[str, Any]:
        body = await context.body(request, WeightsPathBody)
        saved = await context.run(request, context.training.weights.get, caller_of(request).tenant, body.tinker_path)
        base = context.catalog.base
        return {"base_model": base, "is_lora": True, "lora_rank": saved.rank, "optimizer_config": OPTIMIZER}

    @router.get("/checkpoints")
    async def checkpoints(request: HttpRequest, limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        weights, tenant = context.training.weights, caller_of(request).tenant
        found, total = await context.run(request, weights.list, tenant, None, limit, offset)
        return {"checkpoints": [shown_weights(one) for one in found], "cursor": cursor(limit, offset, total)}

    @router.get(RUN)
    async def of_run(request: HttpRequest, id: str, limit: Limit = 1000, offset: Offset = 0) -> dict[str, Any]:
        training, tenant = context.training, caller_of(request).tenant
        await context.run(request, training.runs.get, tenant, id)
        found, total = await context.run(request, training.weights.list, tenant, id, limit, offset)
        return {"checkpoints": [shown_weights(one) for one in found], "cursor": cursor(limit, offset, total)}

    _add_changes(router, context)


def _add_changes(router: APIRouter, context: ServerContext) -> None:
    @router.put(RUN + "/{kind}/{name}/ttl")
    async def live(request: HttpRequest, id: str, kind: str, name: str) -> Response:
        body = await context.body(request, LifetimeBody)
        ends = None if body.ttl_seconds is None else int(time.time()) + body.ttl_seconds
        weights, tenant = context.training.weights, caller_of(request).tenant
        await context.run(request, weights.expire, tenant, f"{SCHEME}{id}/{kind}/{name}", ends)
        return Response(status_code=204)

    @router.delete(ONE)
    async def delete(request: HttpRequest, id: str, checkpoint: str) -> Response:
        await context.run(request, _deleted, context, caller_of(request), f"{SCHEME}{id}/{checkpoint}")
        return Response(status_code=204)

    @router.post(RUN + "/{kind}/{name}/publish")
    async def publish(request: HttpRequest, id: str, kind: str, name: str) -> Response:
        raise ForbiddenError("weights are their tenant's alone on this server: they cannot be published for others")


def _deleted(context: ServerContext, caller: Caller, path: str) -> None:
    """Weights that nobody reaches from now on: the trainer removes their file, and their adapter goes at once."""
    saved = context.training.weights.get(caller.tenant, path)
    context.training.weights.expire(caller.tenant, path, int(time.time()))
    if saved.adapter is not None:
        with suppress(NotFoundError):  # it was removed by hand
            remove_adapter(context, caller, context.catalog.find(caller, saved.adapter), with_aliases=True)
