"""Sessions: what a client asks first, and what it says while it lives."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest

from polyvera.errors import ServeError
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.routes.tinker.bodies import FinishBody, HeartbeatBody, SessionBody, VersionBody

TESTED = ((0, 38), (0, 38))  # the first and the last minor version of the SDK that this was tested with
MAX_PAGE = 1000
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
# Flags of the SDK; those left out are at its own defaults.
FLAGS = {"parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": False, "sample_use_retrieve_futures": False}
DYNAMIC_FLAGS = {"sample_cancel_enabled": True}


def add_sessions(router: APIRouter, context: ServerContext) -> None:
    """What stands before all work."""

    @router.post("/client/config")
    async def config(request: HttpRequest) -> dict[str, Any]:
        check_version((await context.body(request, VersionBody)).sdk_version)
        return FLAGS

    @router.post("/client/dynamic_config")
    async def dynamic_config(request: HttpRequest) -> dict[str, Any]:
        check_version((await context.body(request, VersionBody)).sdk_version)
        return DYNAMIC_FLAGS

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/get_server_capabilities")
    async def capabilities(request: HttpRequest) -> dict[str, Any]:
        most, base = context.engine.max_context, caller_of(request).base
        model = {"model_name": context.catalog.base, "max_context_length": most, "trainable": True, "sampleable": base}
        return {"supported_models": [model]}

    @router.post("/telemetry")
    async def telemetry(request: HttpRequest) -> dict[str, str]:
        return {"status": "accepted"}  # and not kept

    _add_own(router, context)


def _add_own(router: APIRouter, context: ServerContext) -> None:
    @router.post("/create_session")
    async def create_session(request: HttpRequest) -> dict[str, Any]:
        body, runs = await context.body(request, SessionBody), context.training.runs
        check_version(body.sdk_version)
        metadata = {**body.user_metadata, **({"tags": body.tags} if body.tags else {})}
        tenant = caller_of(request).tenant
        id = await context.run(request, runs.create_session, tenant, body.display_name, metadata)
        return {"session_id": id, "type": "create_session"}

    @router.post("/session_heartbeat")
    async def session_heartbeat(request: HttpRequest) -> dict[str, Any]:
        body, runs = await context.body(request, HeartbeatBody), context.training.runs
        await context.run(request, runs.beat, caller_of(request).tenant, body.session_id)
        return {"type": "session_heartbeat"}

    @router.post("/sessions/{id}/finish")
    async def finish(request: HttpRequest, id: str) -> dict[str, Any]:
        await context.body(request, FinishBody)
        await context.run(request, context.training.runs.finish, caller_of(request).tenant, id)
        return {}

    @router.get("/sessions")
    async def sessions(request: HttpRequest, limit: Limit = 20, offset: Offset = 0) -> dict[str, Any]:
        tenant = caller_of(request).tenant
        return {"sessions": await context.run(request, context.training.runs.sessions, tenant, limit, offset)}

    @router.get("/sessions/{id}")
    async def session(request: HttpRequest, id: str) -> dict[str, Any]:
        training, tenant = context.training, caller_of(request).tenant
        found = await context.run(request, training.runs.session, tenant, id)
        return {
            "training_run_ids": await context.run(request, training.runs.of_session, id),
            "sampler_ids": await context.run(request, training.samplers.of_session, id),
            "user_metadata": texts(found.metadata),
            "display_name": found.display_name,
        }


def check_version(version: str) -> None:
    """Raises ServeError for an SDK that this was not tested with."""
    parts = version.split(".")[:2]
    is_number = len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts)
    if not (is_number and TESTED[0] <= tuple(map(int, parts)) <= TESTED[1]):
        first, last = (".".join(map(str, one)) for one in TESTED)
        known = first if first == last else f"{first} to {last}"
        raise ServeError(
            f"this server was tested with tinker {known}, and this is {version[:40]!r}: pip install 'tinker=={last}.*'",
            "sdk_version",
        )


def texts(metadata: Any) -> dict[str, str]:
    """Metadata as the SDK reads it back: values that are texts."""
    return {name: value if isinstance(value, str) else str(value) for name, value in metadata.items()}
