"""History: /v1/history, the last hour by tenant or adapter, and /v1/me, whose key asks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.server.context import ServerContext, caller_of


def routes(context: ServerContext) -> APIRouter:
    """The two endpoints."""
    router = APIRouter()

    @router.get("/v1/me")
    async def me(request: HttpRequest) -> dict[str, Any]:
        caller = caller_of(request)
        given = asdict(caller) | {"adapters": list(caller.adapters), "can_publish": _can_publish(context, caller.admin)}
        most = None if context.fine_tuning is None else context.fine_tuning.policy.max_epochs
        return {"object": "key", **given, "can_train": most is not None, "max_epochs": most}

    @router.get("/v1/history")
    async def history(request: HttpRequest, group_by: Literal["adapter", "tenant"] = "adapter") -> Response:
        caller = caller_of(request)
        found = context.history.series(group_by, None if caller.sees_all else caller.tenant)
        return await context.json(request, lambda: found)

    return router


def _can_publish(context: ServerContext, is_admin: bool) -> bool:
    return is_admin and context.catalog.registry is not None
