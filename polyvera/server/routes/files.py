"""Files: what tenants upload to train on, as OpenAI's API has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from polyvera.data.row_form import Example
from polyvera.errors import ServeError
from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED
from polyvera.jobs.training_files import TrainingFile, TrainingFiles, read_table
from polyvera.model.message import Message
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.multipart import FormPart, form_parts
from polyvera.server.responses import page_of

PURPOSE = "fine-tune"
MAX_PAGE, DEFAULT_PAGE = 10_000, 10_000
MAX_FILENAME_CHARS = 255


def routes(context: ServerContext) -> APIRouter:
    """The routes under /v1/files."""
    router = APIRouter()

    @router.post("/v1/files")
    async def upload(request: HttpRequest) -> dict[str, Any]:
        files, tenant = context.training.files, caller_of(request).tenant
        form = await context.compute(request, form_parts, request.headers.get("content-type", ""), await request.body())
        file = _file_of(form)
        return shown(await context.run(request, files.add, tenant, file.filename, PURPOSE, file.data))

    @router.get("/v1/files")
    async def listed(
        request: HttpRequest,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        kept, tenant = context.training.files, caller_of(request).tenant
        files = await context.run(request, kept.list, tenant, purpose, limit + 1, after, order)
        return await context.json(
            request, lambda: page_of([shown(file) for file in files[:limit]], has_more=len(files) > limit)
        )

    @router.get("/v1/files/{id}")
    async def retrieved(request: HttpRequest, id: str) -> dict[str, Any]:
        return shown(await context.run(request, context.training.files.get, caller_of(request).tenant, id))

    @router.get("/v1/files/{id}/content")
    async def content(request: HttpRequest, id: str) -> Response:
        files = context.training.files
        file = await context.run(request, files.get, caller_of(request).tenant, id)
        return FileResponse(files.path(file.id), media_type="application/jsonl")

    @router.get("/v1/files/{id}/examples")
    async def examples(request: HttpRequest, id: str, limit: Annotated[int, Query(ge=1, le=100)] = 1) -> Response:
        files, tenant = context.training.files, caller_of(request).tenant
        found = await context.computing.run(tenant, _examples, files, tenant, id, limit)
        return await context.json(request, lambda: found)

    @router.delete("/v1/files/{id}")
    async def deleted(request: HttpRequest, id: str) -> dict[str, Any]:
        await context.run(request, context.training.files.delete, caller_of(request).tenant, id)
        return {"id": id, "object": "file", "deleted": True}

    return router


def _examples(files: TrainingFiles, tenant: str, id: str, limit: int) -> dict[str, Any]:
    """What was understood of a file: the form of its rows, the method that they train by, and the first of them."""
    file = files.get(tenant, id)
    found = read_table(files.path(id), file.filename, limit)
    method = DPO if found.row.compares else SUPERVISED
    data = [_shown_example(one) for one in found.examples]
    columns = {"columns": found.columns, "unread_columns": [column for column, _ in found.unread]}
    return {"object": "list", **columns, "method": method, "num_rows": file.num_rows, "data": data}


def _shown_example(one: Example) -> dict[str, Any]:
    said = (Message("", one.prompt),) if isinstance(one.prompt, str) else one.prompt
    turns = [{"role": turn.role, "content": _with_calls(turn.content, turn.fields)} for turn in said]
    worse = {"rejected": one.rejected} if one.rejected else {}
    return {"row": one.row, "prompt": turns, "answer": _with_calls(one.answer, one.fields), **worse}


def _with_calls(content: str, fields: Iterable[tuple[str, Any]]) -> str:
    """A turn as people read it: its text, and what it has beside it, such as calls of functions."""
    rest = [f"{name}: {json.dumps(value, default=str)}" for name, value in fields]
    return "\n".join([content, *rest] if content else rest)


def shown(file: TrainingFile) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def _file_of(form: dict[str, FormPart]) -> FormPart:
    """The file of an upload. Raises ServeError for a form that is none."""
    unknown = next((name for name in form if name not in ("file", "purpose")), None)
    if unknown is not None:
        raise ServeError(f"{unknown[:100]}: this server does not know it; leave it out", unknown[:100])
    if "file" not in form or not form["file"].filename:
        raise ServeError("file: is required, and has a name", "file")
    if "purpose" not in form or form["purpose"].text != PURPOSE:
        raise ServeError(f"purpose: must be {PURPOSE!r}, which is what this server keeps files for", "purpose")
    name = form["file"].filename
    if len(name) > MAX_FILENAME_CHARS or not name.isprintable():
        raise ServeError(f"file: its name must be printable, at most {MAX_FILENAME_CHARS} characters", "file")
    return form["file"]
