"""HttpCustoms: what proxies, browsers and load balancers do by custom, the same on every route."""

from __future__ import annotations

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyvera.errors import ServeError, SizeError

GZIP = 16 + zlib.MAX_WBITS
PIECE_BYTES = 65_536
MAX_MEMBERS = 2048
ENCODINGS = ("gzip", "x-gzip")


class HttpCustoms:
    """An ASGI middleware: HEAD is GET without a body, a slash at the end is none, root_path is left out of paths."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app, self._root_path = app, root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = self._path(scope["path"])
        given = {**scope, "path": path, "raw_path": path.encode()}
        if scope["method"] == "HEAD":
            await self._app({**given, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(given, receive, send)

    def _path(self, path: str) -> str:
        if self._root_path and (path == self._root_path or path.startswith(f"{self._root_path}/")):
            path = path[len(self._root_path) :]
        return path.rstrip("/") or "/"


class UnzippedReceive:
    """receive() of a body that is compressed with gzip, unpacked piece by piece up to a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._unpacking, self._num_bytes, self._num_members = zlib.decompressobj(GZIP), 0, 1

    async def __call__(self) -> Message:
        """The next message. Raises SizeError for more than the limit, ServeError for what is not gzip."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        found, packed = bytearray(), message.get("body", b"")
        while packed:
            if self._unpacking.eof:
                self._next_member()
            found += self._unpacked(packed)
            packed = self._unpacking.unused_data or self._unpacking.unconsumed_tail
            await asyncio.sleep(0)  # others go on
        if not message.get("more_body", False) and not self._unpacking.eof and self._num_bytes:
            raise ServeError("the body is not valid gzip: it ends too early")
        return {**message, "body": bytes(found)}

    def _next_member(self) -> None:
        """A file of gzip may be several, one behind another (RFC 1952, section 2.2)."""
        self._unpacking, self._num_members = zlib.decompressobj(GZIP), self._num_members + 1
        if self._num_members > MAX_MEMBERS:
            raise ServeError(f"the body has more than {MAX_MEMBERS:,} members of gzip: send it as one")

    def _unpacked(self, packed: bytes) -> bytes:
        try:
            piece = self._unpacking.decompress(packed, PIECE_BYTES)
        except zlib.error:
            raise ServeError("the body is not valid gzip, or has something else behind it") from None
        self._num_bytes += len(piece)
        if self._num_bytes > self._limit:
            raise SizeError(f"the body is larger than the {self._limit:,} bytes that are taken here, once unpacked")
        return piece


def unzipped(headers: Headers, receive: Receive, limit: int) -> Receive:
    """receive() of the body as it is meant. Raises ServeError for an encoding that is not known here."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return receive
    if encoding not in ENCODINGS:
        raise ServeError(f"Content-Encoding: {encoding[:40]!r} is not taken here; gzip is")
    return UnzippedReceive(receive, limit)


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return head
