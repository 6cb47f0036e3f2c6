"""Uploads: files that come in parts, as OpenAI's API has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from polyvera.errors import ServeError
from polyvera.jobs.upload_table import Upload
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.job_requests import CompleteBody, UploadBody
from polyvera.server.multipart import form_parts
from polyvera.server.routes import files

UPLOADS = "/v1/uploads"


def routes(context: ServerContext) -> APIRouter:
    """The routes under /v1/uploads."""
    router = APIRouter()

    @router.post(UPLOADS)
    async def create(request: HttpRequest) -> dict[str, Any]:
        body, tenant = await context.body(request, UploadBody), caller_of(request).tenant
        given = (tenant, body.filename, body.purpose, body.bytes)
        return shown(await context.run(request, context.training.uploads.create, *given))

    @router.post(UPLOADS + "/{id}/parts")
    async def add_part(request: HttpRequest, id: str) -> dict[str, Any]:
        uploads, tenant = context.training.uploads, caller_of(request).tenant
        await context.run(request, uploads.get, tenant, id)
        form = await context.compute(request, form_parts, request.headers.get("content-type", ""), await request.body())
        if {*form} != {"data"}:
            raise ServeError("data: is required, and nothing else", "data")
        part = await context.run(request, uploads.add_part, tenant, id, form["data"].data)
        return {"id": part.id, "object": "upload.part", "created_at": part.created_s, "upload_id": part.upload}

    @router.post(UPLOADS + "/{id}/complete")
    async def complete(request: HttpRequest, id: str) -> dict[str, Any]:
        body, uploads = await context.body(request, CompleteBody), context.training.uploads
        given = (caller_of(request).tenant, id, body.part_ids, body.md5)
        upload, file = await context.run(request, uploads.complete, *given)
        return {**shown(upload), "file": files.shown(file)}

    @router.post(UPLOADS + "/{id}/cancel")
    async def cancel(request: HttpRequest, id: str) -> dict[str, Any]:
        return shown(await context.run(request, context.training.uploads.cancel, caller_of(request).tenant, id))

    return router


def shown(upload: Upload) -> dict[str, Any]:
    """An upload as OpenAI's clients know it."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.num_bytes,
        "created_at": upload.created_s,
        "expires_at": upload.expires_s,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None,
    }
