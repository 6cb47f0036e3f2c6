"""Limits: what an engine takes on."""

from __future__ import annotations

from dataclasses import dataclass

from polyvera.errors import ServeError


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine takes on. Raises ServeError for a number that cannot be.

    max_rows: requests in one batch. max_context: tokens of prompt and answer, None for the model's (at most 4096).
    max_waiting: requests that wait. chunk: tokens of prompts computed in one step, None for the device's. num_slots:
    resident adapters. slot_bytes: memory of the slots of one layout. host_bytes: of loaded adapters outside the slots.
    prefix_bytes: of kept prefixes, 0 for none. decode_graphs: whether rows decode by forwards that are captured as CUDA
    graphs and replayed, None for where there is CUDA; True elsewhere goes the same way without captures, more slowly.
    """

    max_rows: int = 64
    max_context: int | None = None
    max_waiting: int = 1024
    chunk: int | None = None
    num_slots: int = 1024
    slot_bytes: int = 8 << 30
    host_bytes: int = 1 << 30
    prefix_bytes: int = 256 << 20
    decode_graphs: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_context", "max_waiting", "chunk", "num_slots", "slot_bytes", "host_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ServeError(f"{name}={value}: it is at least 1")
        if self.prefix_bytes < 0:
            raise ServeError(f"prefix_bytes={self.prefix_bytes}: it is at least 0, which keeps none")
