"""Connection: one end of a socket between two processes. Each message is 4 bytes of length, then that many of JSON."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pydantic import TypeAdapter

from polyvera.errors import FormatError, SamplingError
from polyvera.replicas.messages import Message, read, written

MAX_BYTES = 64 << 20
HEAD = 4
FLUSH_S = 5.0


class Connection:
    """Sends from any thread without waiting for the other end; reads in one thread.

    end: a connected socket.
    known: the type of the messages that are read (TO_REPLICA or FROM_REPLICA).
    """

    def __init__(self, end: socket.socket, known: TypeAdapter[Any]) -> None:
        self._end, self._known = end, known
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = Thread(target=self._write, name="polyvera-connection", daemon=True)
        self._writer.start()

    def send(self, message: Message) -> None:
        """Sends a message; it is lost if the other end has closed. Raises SamplingError for one that is too large."""
        data = written(message)
        if len(data) > MAX_BYTES:
            raise SamplingError(
                f"the request or its answer has {len(data):,} bytes, and at most {MAX_BYTES:,} go from one process to "
                "another: send fewer or shorter texts at a time"
            )
        self._queue.put(data)

    def messages(self) -> Iterator[Any]:
        """The messages from the other end, until it closes. Raises FormatError for an invalid one."""
        with suppress(OSError), self._end.makefile("rb") as file:
            while len(head := file.read(HEAD)) == HEAD:
                size = int.from_bytes(head)
                if size > MAX_BYTES:
                    raise FormatError(
                        f"a message between two processes claims {size:,} bytes; at most {MAX_BYTES:,} are read"
                    )
                data = file.read(size)
                if len(data) < size:
                    return
                yield read(data, self._known)

    def close(self) -> None:
        """Sends what is queued, and closes the socket."""
        self._queue.put(None)
        self._writer.join(FLUSH_S)
        with suppress(OSError):  # the other end may be the first
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            several = [self._queue.get(), *(self._queue.get_nowait() for _ in range(self._queue.qsize()))]
            is_open = None not in several
            data = b"".join(len(one).to_bytes(HEAD) + one for one in several if one is not None)
            try:
                self._end.sendall(data)
            except OSError:
                return
