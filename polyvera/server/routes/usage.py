"""Usage: /v1/usage, the requests and tokens of tenants by day and adapter."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from polyvera.server.context import ServerContext, caller_of
from polyvera.server.usage import UsageQuery, parse_day, parse_groups

MAX_ROWS = 10_000


def routes(context: ServerContext) -> APIRouter:
    """The one endpoint."""
    router = APIRouter()

    @router.get("/v1/usage")
    async def usage(
        request: HttpRequest,
        group_by: str = "day,tenant,adapter",
        since: str = "0001-01-01",
        until: str = "9999-12-31",
        limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 1_000,
    ) -> Response:
        days, caller = (parse_day(since, "since"), parse_day(until, "until")), caller_of(request)
        tenant = None if caller.sees_all else caller.tenant
        query = UsageQuery(tenant, *days, parse_groups(group_by), limit + 1)
        rows = await context.run(request, context.usage.rows, query)
        return await context.json(
            request, lambda: {"object": "list", "data": _summed(rows[:limit]), "has_more": len(rows) > limit}
        )

    return router


def _summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"total_tokens": row["prompt_tokens"] + row["completion_tokens"]} for row in rows]
