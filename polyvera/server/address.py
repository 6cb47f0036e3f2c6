"""Address: where a server listens: a host and a port, or a socket in the file system."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from polyvera.errors import ServeError
from polyvera.server.config import ServerConfig
from polyvera.server.middleware import is_loopback

OWNERS_ALONE = 0o600


@dataclass(frozen=True, slots=True)
class Address:
    """One place. uds: the path of a unix socket, which takes the place of host and port."""

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.uds is None else f"unix:{self.uds}"

    def check(self, config: ServerConfig) -> None:
        """Raises ServeError for an address that other machines reach without a file of keys."""
        if config.keys is None and self.uds is None and not is_loopback(self.host):
            raise ServeError(
                f"host={self.host!r} can be reached from other machines, and there are no keys: make some with "
                "`polyvera keys FILE --add TENANT`, and give --keys FILE; or listen on 127.0.0.1"
            )

    def bound(self) -> socket.socket:
        """A socket that has this address and does not listen yet. Raises ServeError for one that is taken."""
        try:
            return _on_port(self.host, self.port) if self.uds is None else _in_files(self.uds)
        except OSError as error:
            raise self.taken(error) from None

    def taken(self, error: OSError) -> ServeError:
        """What is said of an address that cannot be had."""
        flag = "--port" if self.uds is None else "--uds"
        return ServeError(f"cannot listen on {self}: {error.strerror or error}; choose another with {flag}")

    def left(self) -> None:
        """Removes the socket's file, if it has one."""
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)


def url_of(own: socket.socket) -> str:
    """Where a socket listens."""
    name = own.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _on_port(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address[:2])
    except OSError:
        found.close()
        raise
    return found


def _in_files(path: Path) -> socket.socket:
    """A socket file that only this user may open; one that nobody listens on any more is replaced."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            path.unlink()
        found.bind(str(path))
        path.chmod(OWNERS_ALONE)
    except OSError:
        found.close()
        raise
    return found


def _is_left_over(path: Path) -> bool:
    """Whether a server that has ended left that socket behind."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) != 0
