"""Versions: all of a name, and the file of each."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.errors import NotFoundError
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of

Work = Callable[[ServerContext, Caller, str], Response]


def routes(context: ServerContext) -> APIRouter:
    """Two words behind a name; an adapter whose own name ends so goes before."""
    router = APIRouter()
    for word, work in (("file", _file), ("versions", _versions)):
        router.add_api_route(f"/v1/adapters/{{name:path}}/{word}", _handler(context, word, work), methods=["GET"])
    return router


def _handler(context: ServerContext, word: str, work: Work) -> Any:
    async def handler(request: HttpRequest, name: str) -> Response:
        return await context.run(request, _answer, context, caller_of(request), name, word, work)

    return handler


def _answer(context: ServerContext, caller: Caller, name: str, word: str, work: Work) -> Response:
    try:
        return JSONResponse(context.catalog.told(context.catalog.find(caller, f"{name}/{word}")))
    except NotFoundError:
        return work(context, caller, name)


def _file(context: ServerContext, caller: Caller, name: str) -> Response:
    """The bytes of a version, as they were published."""
    ref = context.catalog.find(caller, name)
    assert context.catalog.registry is not None
    data = context.catalog.registry.read_file(ref)
    headers = {
        "ETag": f'"{sha256(data).hexdigest()}"',
        "Content-Disposition": f'attachment; filename="{ref.name.replace("/", ".")}@{ref.version}.safetensors"',
    }
    return Response(data, media_type="application/octet-stream", headers=headers)


def _versions(context: ServerContext, caller: Caller, name: str) -> Response:
    """Every version of a name, the latest first, with the aliases that point to it."""
    ref = context.catalog.find(caller, name)
    refs = context.catalog.versions(ref.name)
    return JSONResponse({"object": "list", "data": [context.catalog.told(one) for one in reversed(refs)]})
