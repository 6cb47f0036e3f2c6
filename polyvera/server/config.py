"""ServerConfig: what the HTTP server takes on, and from whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polyvera.errors import ServeError


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the server takes on. Raises ServeError for a number that cannot be.

    base: the name of the base model, as clients see it. keys: the file of API keys; None is an open server, for this
    machine's own programs. lora_root: the folder that load_lora_adapter may read from, None for none. max_choices:
    answers of one request. max_per_tenant: answers of one tenant at a time. max_queued: parts of an answer that a
    client has not taken yet. read_s, write_s: seconds that a client may stand still. drain_s: seconds that running
    answers have after SIGTERM. is_metrics_open: whether /metrics needs no key. hosts: further names of this machine
    that an open server answers to.
    """

    base: str
    keys: Path | None = None
    lora_root: Path | None = None
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 64 << 20
    max_choices: int = 64
    max_per_tenant: int = 256
    max_queued: int = 1024
    max_connections: int = 2048
    read_s: float = 20.0
    write_s: float = 30.0
    drain_s: float = 30.0
    is_metrics_open: bool = False
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ServeError(f"{name}={getattr(self, name)}: it is at least 1")
        for name in ("read_s", "write_s", "drain_s"):
            if not 0 < getattr(self, name) < 86_400:
                raise ServeError(f"{name}={getattr(self, name)}: it is more than 0 and less than a day, in seconds")
        if ":" in self.base or not self.base:
            raise ServeError(f"base={self.base!r}: the name of the base is not empty and has no ':'")


COUNTS = ("max_body_bytes", "max_upload_bytes", "max_choices", "max_per_tenant", "max_queued", "max_connections")
