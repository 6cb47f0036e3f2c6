"""Server: the app on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from functools import partial
from threading import Thread, current_thread, main_thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polyvera.engine.protocol import ServedEngine
from polyvera.server.address import Address, url_of
from polyvera.server.config import ServerConfig
from polyvera.server.middleware import ServerState

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 75
GRACE_S = 5.0
BACKLOG = 2048
MAX_HEAD_BYTES, MAX_HEADERS = 32_768, 100
WORDS = b'{"error":{"message":"the head of this request is larger than is taken here: at most 32 KiB in 100 headers",'
BODY = WORDS + b'"type":"invalid_request_error","param":null,"code":"request_too_large"}}'
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: " + str(len(BODY)).encode() + b"\r\n\r\n" + BODY
)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a bounded head, that waits for it and for a client that does not read for so long only.

    unfinished: the connections of one server whose request is not whole yet, the oldest first; beyond max_unfinished
    the oldest is closed, so that silent ones shut nobody out.
    """

    def __init__(
        self,
        *args: Any,
        head_s: float,
        write_s: float,
        unfinished: dict[BoundedProtocol, None],
        max_unfinished: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_s, self._write_s = head_s, write_s
        self._unfinished, self._max_unfinished = unfinished, max_unfinished
        self._num_head_bytes = self._num_headers = 0
        self._is_head_only = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and own.family != socket.AF_UNIX:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for its head's receipt
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self._write_s))
        self._timer = self.loop.call_later(self._head_s, transport.abort)
        self._wait()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._num_head_bytes += len(data) if self._is_head_only else 0
        super().data_received(data)
        if self._is_head_only and self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def on_message_begin(self) -> None:  # noqa: D102
        super().on_message_begin()
        self._num_headers, self._is_head_only = 0, True
        self._wait()
        self._stop_timer()
        self._timer = self.loop.call_later(self._head_s, self.transport.abort)

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._num_headers += 1
        if self._num_headers <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:  # noqa: D102
        self._stop_timer()
        self._unfinished.pop(self, None)
        self._num_head_bytes, self._is_head_only = 0, False
        if self._num_headers > MAX_HEADERS or sum(len(n) + len(v) for n, v in self.headers) > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop_timer()
        self._unfinished.pop(self, None)
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Stands behind all others whose request is not whole yet."""
        self._unfinished[self] = None
        if len(self._unfinished) > self._max_unfinished:
            oldest = next(iter(self._unfinished))
            del self._unfinished[oldest]
            oldest.transport.abort()

    def _refuse(self) -> None:
        """Answers a head that is too large, and closes."""
        self.transport.write(TOO_LARGE)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server:
    """One app at one address, bound at once. run() returns after SIGTERM or SIGINT, when the running answers are done.

    own: a socket that the address gave before. Raises ServeError for an address that is taken, or that other machines
    reach without a file of keys.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: ServedEngine,
        config: ServerConfig,
        state: ServerState,
        address: Address,
        own: socket.socket | None = None,
    ) -> None:
        address.check(config)
        self._engine, self._config, self._state, self._address = engine, config, state, address
        self._socket = own or address.bound()
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:  # taken while the model was loaded
            raise address.taken(error) from None
        options = uvicorn.Config(
            app,
            http=partial(  # type: ignore[arg-type]
                BoundedProtocol,
                head_s=config.read_s,
                write_s=config.write_s,
                unfinished={},
                max_unfinished=max(1, config.max_connections // 2),
            ),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=config.max_connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(GRACE_S),
        )
        self._is_ending = False
        self._server = uvicorn.Server(options)
        self._server.handle_exit = self._on_signal  # type: ignore[method-assign, assignment]

    def run(self) -> None:
        """Serves until it is told to stop."""
        gc.collect()
        gc.freeze()  # the model's objects and the libraries': a collection beside the requests need not look at them
        reload_at_hangup(self._state)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._address.left()

    def stop(self) -> None:
        """Takes no new requests, lets the running answers end, and then returns from run(). Any thread."""
        if not self._state.is_draining:
            self._state.is_draining = True
            Thread(target=self._drain, name="polyvera-drain", daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return url_of(self._socket)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._state.is_draining and number == signal.SIGINT:  # asked twice; at the third time nobody is waited for
            self._server.force_exit = self._is_ending
            Thread(target=self._end, name="polyvera-end", daemon=True).start()
        self.stop()

    def _drain(self) -> None:
        if not self._engine.drain(self._config.drain_s):
            log.warning("some answers were not done after %g s: their clients get 503", self._config.drain_s)
        self._end()

    def _end(self) -> None:
        """Ends the answers that are left, of which each client gets an error, and then run()."""
        self._is_ending = True
        self._engine.stop()
        self._server.should_exit = True


def reload_at_hangup(state: ServerState) -> None:
    """Makes SIGHUP read everything again, whose default is to end the process. Nothing but in the main thread."""

    def on_hangup(number: int, frame: Any) -> None:
        Thread(target=state.reload, name="polyvera-reload", daemon=True).start()

    if hasattr(signal, "SIGHUP") and current_thread() is main_thread():
        signal.signal(signal.SIGHUP, on_hangup)
