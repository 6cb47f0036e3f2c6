"""AuthMiddleware: what every HTTP request passes before the app sees it: who calls, how much, how fast."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyvera.errors import (
    AccessError,
    ClosedError,
    DisconnectedError,
    ForbiddenError,
    PolyveraError,
    ServeError,
    SizeError,
    SlowError,
)
from polyvera.server.access_log import CURRENT, AccessRecord
from polyvera.server.api_keys import EVERYONE, Caller, KeyFile
from polyvera.server.config import ServerConfig
from polyvera.server.http_customs import unzipped
from polyvera.server.json_lines import QueuedLines
from polyvera.server.metrics import OTHER, Metrics
from polyvera.server.rate_limits import RateLimits
from polyvera.server.tracing import RequestTracer

log = logging.getLogger(__name__)
ALWAYS_OPEN = ("/health", "/ready", "/version")
PAGES = {"index.html": "/", "docs.html": "/docs"}  # by file
PAGE_FILES = ("/page/", "/favicon.ico")
UPLOADS = ("/v1/adapters/", "/v1/files", "/v1/uploads", "/api/v1/forward_backward")
TINKER_PREFIX = "tml-"  # without which the tinker package sends no key
MIN_BYTES_PER_S = 16_384
REQUEST_ID = "x-request-id"
LENGTH = re.compile("[0-9]{1,18}")
TRACE = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C's traceparent
OWN_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # a client's, which is kept


@dataclass
class ServerState:
    """Whether new requests are still taken, and what is read again at SIGHUP."""

    is_draining: bool = False
    reloads: list[Callable[[], None]] = field(default_factory=list)

    def reload(self) -> None:
        """Reads everything again; what fails is logged and stays as it was."""
        for one in self.reloads:
            try:
                one()
            except PolyveraError as error:
                log.error("reload: %s", error)
        log.warning("reloaded the keys and the store's facts")


class AuthMiddleware:
    """An ASGI middleware. Answers what is refused itself, in the shape of all errors."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServerConfig,
        keys: KeyFile | None,
        state: ServerState,
        metrics: Metrics,
        rates: RateLimits | None = None,
        lines: QueuedLines | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app, self._config, self._keys, self._state, self._metrics = app, config, keys, state, metrics
        self._rates, self._lines, self._tracer = rates or RateLimits(), lines, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _record(scope, Headers(scope=scope))
        current = CURRENT.set(record)
        try:
            await self._pass(scope, receive, BoundedSend(send, record, self._config.write_s), record)
        finally:
            CURRENT.reset(current)
            self._tell(scope, record)

    async def _pass(self, scope: Scope, receive: Receive, bounded: BoundedSend, record: AccessRecord) -> None:
        request_id = record.id
        try:
            caller = record.caller = self._admitted(scope["path"], Headers(scope=scope))
            bounded.extra = partial(self._rates.headers, caller)
            self._rates.count_request(caller, record.method)
            body = self._body(scope, receive)
        except PolyveraError as error:
            response = self._metrics.failed(error, request_id).response(scope["path"])
            response.headers["connection"] = "close"  # its body is not read
            await response(scope, receive, bounded)
            return
        scope.setdefault("state", {}).update(caller=caller, request_id=request_id)
        try:
            await self._app(scope, body, bounded)
        except Exception:
            record.status = record.status or HTTPStatus.INTERNAL_SERVER_ERROR  # which Starlette answers, outside
            raise

    def _body(self, scope: Scope, receive: Receive) -> Receive:
        """Raises ServeError for an encoding that is not taken."""
        limit = self._limit(scope["path"])
        return unzipped(Headers(scope=scope), BoundedReceive(receive, limit, self._config.read_s), limit)

    def _tell(self, scope: Scope, record: AccessRecord) -> None:
        """Counts a request that has ended, by the pattern of its path."""
        route = getattr(scope.get("route"), "path", OTHER)
        self._metrics.requests.labels(route, str(record.status)).inc()
        if self._lines is not None:
            self._lines.put(record.row())
        if self._tracer is not None:
            self._tracer.add(record, route)

    def _admitted(self, path: str, headers: Headers) -> Caller:
        """Raises AccessError, ClosedError, SizeError."""
        if path in ALWAYS_OPEN or (path == "/metrics" and self._config.is_metrics_open):
            return EVERYONE
        caller = self._caller(path, headers)
        if self._state.is_draining and path != "/metrics":
            raise ClosedError("the server is stopping: it takes no new requests")
        length = headers.get("content-length", "0")
        if not LENGTH.fullmatch(length):
            raise ServeError(f"Content-Length: {length[:40]!r} is not a number of bytes")
        if int(length) > self._limit(path):
            raise _too_large(self._limit(path))
        return caller

    def _caller(self, path: str, headers: Headers) -> Caller:
        if self._keys is None:
            self._check_local(headers)
            return EVERYONE
        if path in PAGES.values() or path.startswith(PAGE_FILES):
            return Caller("", (), base=False, admin=False)
        own = headers.get("x-api-key", "").removeprefix(TINKER_PREFIX)
        scheme, _, secret = headers.get("authorization", f"Bearer {own}").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise AccessError("this server needs an API key: send the header `Authorization: Bearer KEY`")
        return self._keys.caller(secret.strip())

    def _check_local(self, headers: Headers) -> None:
        """A page of another site must not reach an open server through its visitor's browser."""
        host = _host(f"//{headers.get('host', '')}")
        if not (is_loopback(host) or host in self._config.hosts):
            raise ForbiddenError(f"an open server answers to this machine's own names only, not to {host!r}")
        origin = headers.get("origin")
        allowed = self._config.allow_origin
        if origin is not None and _host(origin) != host and origin not in allowed and "*" not in allowed:
            raise ForbiddenError(f"an open server takes no requests of pages from {origin!r}")

    def _limit(self, path: str) -> int:
        given = self._config
        return given.max_upload_bytes if path.startswith(UPLOADS) else given.max_body_bytes


class BoundedReceive:
    """receive(), bounded in bytes and in time: a client has read_s and what its bytes take at a modest speed."""

    def __init__(self, receive: Receive, limit: int, read_s: float) -> None:
        self._receive, self._limit, self._read_s = receive, limit, read_s
        self._started, self._num_bytes, self._is_whole = monotonic(), 0, False

    async def __call__(self) -> Message:
        """The next message. Raises SlowError, SizeError, and DisconnectedError where the client goes before its end."""
        if self._is_whole:
            return await self._receive()
        left = self._started + self._read_s + self._num_bytes / MIN_BYTES_PER_S - monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            raise SlowError(f"the body did not come within {self._read_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise DisconnectedError("the client has gone before its request was whole")
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limit:
            raise _too_large(self._limit)
        self._is_whole = not message.get("more_body", False)
        return message


class BoundedSend:
    """send(), with the request's id, and no longer than write_s at a time for a client that does not read.

    record: is told the status and when it began and ended.
    """

    def __init__(self, send: Send, record: AccessRecord, write_s: float) -> None:
        self._send, self._record, self._write_s = send, record, write_s
        self.extra: Callable[[], Mapping[str, str]] = dict  # headers that are known when it begins

    async def __call__(self, message: Message) -> None:
        """Sends a message. Raises ConnectionError for a client that does not read."""
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update({REQUEST_ID: self._record.id, **self.extra()})
            self._record.status = message["status"]
        elif not self._record.first_byte:
            self._record.first_byte = monotonic()
        try:
            await asyncio.wait_for(self._send(message), self._write_s)
        except TimeoutError:
            raise ConnectionError(
                f"the client of request {self._record.id} did not read for {self._write_s:g} s"
            ) from None
        self._record.is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)


def _record(scope: Scope, headers: Headers) -> AccessRecord:
    given, trace = headers.get(REQUEST_ID, ""), headers.get("traceparent", "")
    return AccessRecord(
        given if OWN_ID.fullmatch(given) else uuid4().hex,
        scope.get("method", ""),
        scope["path"],
        (scope.get("client") or ("",))[0],
        trace if TRACE.fullmatch(trace) else "",
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _too_large(limit: int) -> SizeError:
    return SizeError(f"the body is larger than the {limit:,} bytes that are taken here")
