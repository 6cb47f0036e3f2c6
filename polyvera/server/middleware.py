"""AuthMiddleware: what every HTTP request passes before the app sees it: who calls, how much, how fast."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyvera.errors import AccessError, ClosedError, ForbiddenError, PolyveraError, ServeError, SizeError, SlowError
from polyvera.server.api_keys import EVERYONE, Caller, KeyFile
from polyvera.server.config import ServerConfig
from polyvera.server.metrics import Metrics

ALWAYS_OPEN = ("/health", "/ready", "/version")
PAGE = ("/", "/page/", "/favicon.ico")
UPLOADS = ("/v1/adapters/", "/v1/files")
MIN_BYTES_PER_S = 16_384
REQUEST_ID = "x-request-id"
LENGTH = re.compile("[0-9]{1,18}")
OWN_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # a client's, which is kept


@dataclass
class ServerState:
    """Whether new requests are still taken."""

    is_draining: bool = False


class AuthMiddleware:
    """An ASGI middleware. Answers what is refused itself, in the shape of all errors."""

    def __init__(
        self, app: ASGIApp, config: ServerConfig, keys: KeyFile | None, state: ServerState, metrics: Metrics
    ) -> None:
        self._app, self._config, self._keys, self._state, self._metrics = app, config, keys, state, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if OWN_ID.fullmatch(given) else uuid4().hex
        bounded = BoundedSend(send, request_id, self._config.write_s)
        try:
            caller = self._admitted(scope["path"], Headers(scope=scope))
        except PolyveraError as error:
            response = self._metrics.failed(error, request_id).response()
            response.headers["connection"] = "close"  # its body is not read
            await response(scope, receive, bounded)
            return
        scope.setdefault("state", {}).update(caller=caller, request_id=request_id)
        await self._app(scope, BoundedReceive(receive, self._limit(scope["path"]), self._config.read_s), bounded)

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
        if path == PAGE[0] or path.startswith(PAGE[1:]):
            return Caller("", (), base=False, admin=False)
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise AccessError("this server needs an API key: send the header `Authorization: Bearer KEY`")
        return self._keys.caller(secret.strip())

    def _check_local(self, headers: Headers) -> None:
        """A page of another site must not reach an open server through its visitor's browser."""
        host = _host(f"//{headers.get('host', '')}")
        if not (is_loopback(host) or host in self._config.hosts):
            raise ForbiddenError(f"an open server answers to this machine's own names only, not to {host!r}")
        origin = headers.get("origin")
        if origin is not None and _host(origin) != host:
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
        """The next message. Raises SlowError, SizeError."""
        if self._is_whole:
            return await self._receive()
        left = self._started + self._read_s + self._num_bytes / MIN_BYTES_PER_S - monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            raise SlowError(f"the body did not come within {self._read_s:g} s") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limit:
            raise _too_large(self._limit)
        self._is_whole = not message.get("more_body", False)
        return message


class BoundedSend:
    """send(), with the request's id, and no longer than write_s at a time for a client that does not read."""

    def __init__(self, send: Send, request_id: str, write_s: float) -> None:
        self._send, self._id, self._write_s = send, request_id, write_s

    async def __call__(self, message: Message) -> None:
        """Sends a message. Raises ConnectionError for a client that does not read."""
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[REQUEST_ID] = self._id
        try:
            await asyncio.wait_for(self._send(message), self._write_s)
        except TimeoutError:
            raise ConnectionError(f"the client of request {self._id} did not read for {self._write_s:g} s") from None


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
