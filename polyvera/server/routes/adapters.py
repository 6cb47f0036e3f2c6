"""Adapters: publishing, removing and naming them over HTTP, and vLLM's two routes for the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import agrees
from polyvera.engine.openmp import guest
from polyvera.errors import ForbiddenError, LayoutError, NotFoundError, PolyveraError, ReferenceNameError
from polyvera.model.unread import check_read
from polyvera.server.adapter_query import AdapterQuery
from polyvera.server.api_keys import Caller
from polyvera.server.context import ServerContext, caller_of
from polyvera.server.requests import AliasBody, LoadBody, UnloadBody
from polyvera.store.file.codec import decode
from polyvera.store.reference import AdapterRef, check_name, parse_reference
from polyvera.store.registry import Registry
from polyvera.store.regular_file import read_regular

MAX_PAGE = 1_000


def routes(context: ServerContext, base: str) -> APIRouter:
    """base: the fingerprint of the base's weights."""
    router = APIRouter()
    _add_reading(router, context)
    _add_publishing(router, context, base)
    _add_vllm(router, context, base)
    return router


def _add_reading(router: APIRouter, context: ServerContext) -> None:
    @router.get("/v1/adapters")
    async def listed(
        request: HttpRequest,
        prefix: str = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        after: str = "",
        search: str = "",
        sort: str = "name",
        offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    ) -> Response:
        query = AdapterQuery(prefix, search, sort, after, offset, limit)
        found = await context.run(request, _page, context, caller_of(request), query)
        return await context.json(request, lambda: found)

    @router.get("/v1/adapters/{name:path}")
    async def shown(request: HttpRequest, name: str) -> dict[str, Any]:
        caller = caller_of(request)
        return await context.run(request, lambda: context.catalog.told(context.catalog.find(caller, name)))


def _add_publishing(router: APIRouter, context: ServerContext, base: str) -> None:
    @router.put("/v1/adapters/{name:path}", status_code=201)
    @router.post("/v1/adapters/{name:path}", status_code=201)
    async def upload(request: HttpRequest, name: str, alias: str | None = None) -> dict[str, Any]:
        caller = caller_of(request)
        registry = _publisher(context, caller, name)
        data = await request.body()
        ref = await context.run(request, _published, context, caller, registry, name, data, alias, base)
        return await context.run(request, context.catalog.told, ref)

    @router.delete("/v1/adapters/{name:path}")
    async def remove(
        request: HttpRequest, name: str, with_aliases: bool = False, all_versions: bool = False
    ) -> dict[str, Any]:
        caller = caller_of(request)
        if all_versions:
            versions = await context.run(request, _removed_whole, context, caller, name)
            return {"id": name, "object": "adapter.deleted", "deleted": True, "versions": versions}
        ref = await context.run(request, _removed, context, caller, name, with_aliases)
        return {"id": str(ref), "object": "adapter.deleted", "deleted": True}

    @router.post("/v1/aliases")
    async def alias(request: HttpRequest) -> dict[str, Any]:
        body, caller = await context.body(request, AliasBody), caller_of(request)
        return await context.run(request, _aliased, context, caller, body)


def _add_vllm(router: APIRouter, context: ServerContext, base: str) -> None:
    @router.post("/v1/load_lora_adapter")
    async def load(request: HttpRequest) -> Response:
        body, caller = await context.body(request, LoadBody), caller_of(request)
        await context.run(request, _loaded, context, caller, body, base)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(request: HttpRequest) -> Response:
        body, caller = await context.body(request, UnloadBody), caller_of(request)
        await context.run(request, _unloaded, context, caller, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _page(context: ServerContext, caller: Caller, query: AdapterQuery) -> dict[str, Any]:
    refs = query.chosen(context.catalog.names(caller, query.prefix))
    told = []
    for ref in query.page(refs):
        try:
            told.append(context.catalog.told(ref))
        except NotFoundError:  # removed a moment ago
            continue
    return {"object": "list", "data": told, "has_more": query.has_more(refs), "total": len(refs)}


def _publisher(context: ServerContext, caller: Caller, name: str) -> Registry:
    """The store, for a caller who may publish under that name. Raises AccessError, ReferenceNameError."""
    caller.check_admin()
    check_name(name)
    if not caller.sees(name):
        raise ForbiddenError(f"this API key may not publish {name!r}")
    if context.catalog.registry is None:
        raise ForbiddenError("this server has no store: start it with --store")
    context.catalog.check_store()
    return context.catalog.registry


@guest()
def _published(
    context: ServerContext, caller: Caller, registry: Registry, name: str, data: bytes, alias: str | None, base: str
) -> AdapterRef:
    return _put(context, caller, registry, name, decode(data), alias, base)


def _put(
    context: ServerContext,
    caller: Caller,
    registry: Registry,
    name: str,
    adapter: Adapter,
    alias: str | None,
    base: str,
) -> AdapterRef:
    if not agrees(adapter.base, base):
        raise LayoutError("this is an adapter of another base model: this server cannot serve it, and does not take it")
    check_read(adapter, name)
    ref = registry.put(name, adapter, alias=alias)
    context.catalog.open(name)
    context.audit.write(caller, "publish", adapter=str(ref), bytes=ref.num_bytes, alias=alias)
    return ref


def _removed(context: ServerContext, caller: Caller, reference: str, with_aliases: bool) -> AdapterRef:
    caller.check_admin()
    ref = context.catalog.find(caller, reference)
    if parse_reference(reference).version is None:
        raise ReferenceNameError(
            f"{reference}: name the version, such as {ref}, or remove them all with all_versions=true"
        )
    remove_adapter(context, caller, ref, with_aliases)
    return ref


def _removed_whole(context: ServerContext, caller: Caller, name: str) -> list[int]:
    """Every version of a name and its aliases. The oldest goes first, so that a name means its latest to the end."""
    caller.check_admin()
    ref = context.catalog.find(caller, name)
    if str(parse_reference(name).name) != name:
        raise ReferenceNameError(f"{name}: with all_versions=true a name has no version, such as {ref.name}")
    refs = context.catalog.versions(name)
    for one in refs:
        remove_adapter(context, caller, one, with_aliases=True)
    return [one.version for one in refs]


def remove_adapter(context: ServerContext, caller: Caller, ref: AdapterRef, with_aliases: bool) -> None:
    """Removes a version from the store and from the engine. Raises what the store raises."""
    assert context.catalog.registry is not None
    context.catalog.registry.remove(str(ref), with_aliases=with_aliases)
    context.engine.evict(ref)
    context.audit.write(caller, "remove", adapter=str(ref))


def _aliased(context: ServerContext, caller: Caller, body: AliasBody) -> dict[str, Any]:
    caller.check_admin()
    asked = body.name if body.version is None else f"{body.name}@{body.version}"
    ref = context.catalog.find(caller, asked)
    assert context.catalog.registry is not None
    context.catalog.registry.alias(ref.name, body.alias, ref.version)
    context.audit.write(caller, "alias", alias=f"{ref.name}@{body.alias}", version=ref.version)
    return {"id": f"{ref.name}@{body.alias}", "root": str(ref)}


@guest()
def _loaded(context: ServerContext, caller: Caller, body: LoadBody, base: str) -> None:
    registry = _publisher(context, caller, body.lora_name)
    if not body.lora_path:
        raise ReferenceNameError("lora_path is empty: name a PEFT folder or an adapter's file")
    known = _is_known(context, caller, body.lora_name)
    if known and not body.load_inplace:
        raise HTTPException(
            400,
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
        )
    adapter = _read(context, _inside(context.config.lora_root, body.lora_path))
    context.engine.preload(_put(context, caller, registry, body.lora_name, adapter, None, base))


def _is_known(context: ServerContext, caller: Caller, name: str) -> bool:
    try:
        context.catalog.find(caller, name)
    except NotFoundError:
        return False
    return True


def _inside(root: Path | None, given: str) -> Path:
    """The path below the root. Raises ForbiddenError for one that leads elsewhere or through a link, NotFoundError."""
    if root is None:
        raise ForbiddenError("this server reads no adapters by path: start it with --lora-root FOLDER")
    try:
        top = root.resolve()
        path = Path(os.path.normpath(top / given))
        is_inside = "\0" not in given and path.is_relative_to(top) and path.resolve() == path
        is_there = is_inside and path.exists()
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise _nothing_at(given) from error
    if not is_inside:
        raise ForbiddenError(
            f"lora_path={given!r} is not inside the folder that this server reads adapters from, or leads through a "
            "link"
        )
    if not is_there:
        raise _nothing_at(given)
    return path


def _nothing_at(given: str) -> NotFoundError:
    return NotFoundError(f"lora_path: there is no adapter at {given[:200]!r}")


def _read(context: ServerContext, path: Path) -> Adapter:
    """The adapter of a file or a PEFT folder. Raises FormatError and its kin, without the path of the machine."""
    if path.is_dir():
        from polyvera.store.peft import import_peft

        for file in path.iterdir():
            if file.is_symlink():
                raise ForbiddenError(f"lora_path: {file.name} is a link, which this server does not follow")
        adapter = import_peft(path, context.engine.model)
        return replace(adapter, base="")  # checked by its shapes: a folder does not say of which weights it is
    try:
        return decode(read_regular(path, context.config.max_upload_bytes))
    except OSError as error:
        raise NotFoundError(f"lora_path: {path.name!r} cannot be read ({error.strerror})") from None


def _unloaded(context: ServerContext, caller: Caller, name: str) -> None:
    caller.check_admin()
    try:
        ref = context.catalog.find(caller, name)
    except PolyveraError:
        raise NotFoundError(f"The lora adapter '{name[:200]}' cannot be found.") from None
    context.catalog.close(ref.name)
    context.audit.write(caller, "unload", adapter=ref.name)
    for one in context.engine.stats().resident:
        if one.adapter.partition("@")[0] == ref.name:
            context.engine.evict(replace(ref, version=int(one.adapter.rpartition("@")[2])))
