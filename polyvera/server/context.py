"""ServerContext: what every route of one server works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from time import time
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from polyvera.engine.protocol import EmbeddingEngine, GenerationEngine, ServedEngine
from polyvera.errors import ServeError
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.model.token_bytes import TokenBytes
from polyvera.server.access_log import CURRENT
from polyvera.server.admission import Admission
from polyvera.server.api_keys import Caller, KeyFile
from polyvera.server.audit_log import AuditLog
from polyvera.server.catalog import Catalog
from polyvera.server.config import ServerConfig
from polyvera.server.history import ActivityHistory
from polyvera.server.json_body import read_body
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import ServerState
from polyvera.server.rate_limits import RateLimits
from polyvera.server.tenant_pool import COMPUTING_SHARE, TenantPool
from polyvera.server.tokenizer_processes import TokenizerProcesses
from polyvera.server.usage import UsageStore
from polyvera.store.reference import AdapterRef

AT_ONCE_BYTES = 16_384
T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")


@dataclass(frozen=True)
class ServerContext:
    """A running engine and what stands around it.

    pool: for what waits for files. computing: for tokens, and bodies that are read. compiling: for schemas.
    writing: for answers, which wait for no body that is read.
    """

    engine: ServedEngine
    config: ServerConfig
    catalog: Catalog
    metrics: Metrics
    state: ServerState
    admission: Admission
    keys: KeyFile | None = None
    usage: UsageStore = field(default_factory=UsageStore)
    rates: RateLimits = field(default_factory=RateLimits)
    audit: AuditLog = field(default_factory=AuditLog)
    history: ActivityHistory = field(default_factory=ActivityHistory)
    fine_tuning: FineTuning | None = None
    pool: TenantPool = field(default_factory=TenantPool)
    computing: TenantPool = field(default_factory=lambda: TenantPool(COMPUTING_SHARE))
    compiling: TenantPool = field(default_factory=lambda: TenantPool(COMPUTING_SHARE))
    writing: TenantPool = field(default_factory=TenantPool)
    started: int = field(default_factory=lambda: int(time()))

    @cached_property
    def tokenizing(self) -> TokenizerProcesses:
        """What reads long texts."""
        return TokenizerProcesses(self.engine.tokenizer)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """What each token is on its own."""
        return TokenBytes(self.engine.tokenizer)

    @property
    def generation(self) -> GenerationEngine:
        """The engine, which writes text. Raises ServeError where it doesn't."""
        if self.engine.generation is None:
            raise ServeError(
                f"this server runs {self.catalog.base}, an encoder: ask /v1/embeddings or /v1/classify for vectors "
                "and classes, it writes no text"
            )
        return self.engine.generation

    @property
    def embedding(self) -> EmbeddingEngine:
        """The engine, which gives vectors and classes. Raises ServeError where it doesn't."""
        if self.engine.embedding is None:
            raise ServeError(
                f"this server runs {self.catalog.base}, which answers /v1/completions and /v1/chat/completions; "
                "embeddings and classes come from an encoder, or from a folder whose config.json names a "
                "class with a head, such as LlamaForSequenceClassification"
            )
        return self.engine.embedding

    @property
    def training(self) -> FineTuning:
        """The files and jobs of a server that trains. Raises ServeError where it doesn't."""
        if self.fine_tuning is None:
            raise ServeError("this server trains nothing: start it with --train")
        return self.fine_tuning

    def count(self, caller: Caller, adapter: AdapterRef | None, prompt_tokens: int, answer_tokens: int) -> None:
        """Counts what a request has used."""
        label = self.metrics.adapters.label(adapter)
        for kind, num in (("prompt", prompt_tokens), ("answer", answer_tokens)):
            self.metrics.tokens.labels(caller.tenant, label, kind).inc(num)
        record = CURRENT.get()
        if record is not None:
            record.use(adapter, prompt_tokens, answer_tokens)
        name = "" if adapter is None else adapter.name
        self.usage.add(caller.tenant, caller.key, name, prompt_tokens, answer_tokens)

    async def run(self, request: HttpRequest, work: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """What `work` returns, done by one of the caller's threads: the event loop waits for no file and no library."""
        return await self.pool.run(caller_of(request).tenant, work, *args, **kwargs)

    async def compute(self, request: HttpRequest, work: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """The same for work that may keep a core busy: what comes of a long body has fewer threads."""
        if len(await request.body()) < AT_ONCE_BYTES:
            return await self.run(request, work, *args, **kwargs)
        return await self.computing.run(caller_of(request).tenant, work, *args, **kwargs)

    async def read(self, request: HttpRequest, work: Callable[..., R], given: Callable[[], dict[str, Any]]) -> R:
        """What a function of CALLS makes of the tokenizer and arguments; of a long body in a process of its own.

        given: the arguments by name, made beside the event loop.
        """
        if len(await request.body()) < AT_ONCE_BYTES:
            return await self.run(request, lambda: work(self.engine.tokenizer, **given()))
        return await self.computing.run(caller_of(request).tenant, lambda: self.tokenizing.call(work, given()))

    async def json(self, request: HttpRequest, make: Callable[[], Any]) -> Response:
        """An answer of JSON that may be long: it is made and written beside the event loop."""
        return await self.writing.run(caller_of(request).tenant, lambda: JSONResponse(make()))

    async def body(self, request: HttpRequest, kind: type[T]) -> T:
        """The JSON body. Raises ValidationError, ServeError, and HTTPException for what is not said to be JSON."""
        return await self.read_json(request, await self.json_data(request), kind)

    async def json_data(self, request: HttpRequest) -> bytes:
        """The body of a request that says that it is JSON. Raises HTTPException for another."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != "application/json":  # what a browser sends for a page without asking first is none
            raise HTTPException(
                415, f"the body is {repr(given[:100]) if given else 'of no type'}: send Content-Type: application/json"
            )
        return await request.body()

    async def read_json(self, request: HttpRequest, data: bytes, kind: type[T]) -> T:
        """A JSON body that is here. Raises ValidationError, ServeError."""
        if len(data) < AT_ONCE_BYTES:
            return read_body(data, kind)
        return await self.compute(request, read_body, data, kind)


def caller_of(request: HttpRequest) -> Caller:
    """Who calls."""
    caller: Caller = request.state.caller
    return caller
