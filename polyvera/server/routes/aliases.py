"""Aliases: the words that stand for versions, listed, shown and removed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest

from polyvera.errors import NotFoundError, ReferenceNameError
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of

MAX_PAGE = 1_000


def routes(context: ServerContext) -> APIRouter:
    """The list, one of it, and the end of one. One is made by POST /v1/aliases."""
    router = APIRouter()

    @router.get("/v1/aliases")
    async def listed(
        request: HttpRequest, prefix: str = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100, after: str = ""
    ) -> dict[str, Any]:
        """limit, after: of the names that are looked at, in order."""
        return await context.run(request, _page, context, caller_of(request), prefix, limit, after)

    @router.get("/v1/aliases/{name:path}")
    async def shown(request: HttpRequest, name: str) -> dict[str, Any]:
        return await context.run(request, _one, context, caller_of(request), name)

    @router.delete("/v1/aliases/{name:path}")
    async def removed(request: HttpRequest, name: str) -> dict[str, Any]:
        return await context.run(request, _removed, context, caller_of(request), name)

    return router


def _page(context: ServerContext, caller: Caller, prefix: str, limit: int, after: str) -> dict[str, Any]:
    refs = [ref for ref in context.catalog.names(caller, prefix) if ref.name > after]
    data = [_told(ref.name, *item) for ref in refs[:limit] for item in context.catalog.aliases(ref.name).items()]
    return {"object": "list", "data": data, "has_more": len(refs) > limit}


def _one(context: ServerContext, caller: Caller, reference: str) -> dict[str, Any]:
    parsed = context.catalog.parsed(caller, reference)
    version = context.catalog.aliases(parsed.name).get(parsed.alias or "")
    if version is None:
        raise NotFoundError(f"there is no alias {reference[:200]!r}: name one such as acme/task@prod")
    return _told(parsed.name, parsed.alias or "", version)


def _removed(context: ServerContext, caller: Caller, reference: str) -> dict[str, Any]:
    caller.check_admin()
    parsed = context.catalog.parsed(caller, reference)
    if parsed.alias is None:
        raise ReferenceNameError(f"{reference[:200]}: name the alias, such as {parsed.name}@prod")
    assert context.catalog.registry is not None
    context.catalog.registry.unalias(parsed.name, parsed.alias)
    context.audit.write(caller, "unalias", alias=f"{parsed.name}@{parsed.alias}")
    return {"id": f"{parsed.name}@{parsed.alias}", "object": "alias.deleted", "deleted": True}


def _told(name: str, alias: str, version: int) -> dict[str, Any]:
    return {
        "id": f"{name}@{alias}",
        "object": "alias",
        "name": name,
        "alias": alias,
        "version": version,
        "root": f"{name}@{version}",
    }
