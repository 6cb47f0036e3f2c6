"""A second stream of the GPU, for the products that need not wait for the base layer's: A x beside W x."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_SIDE: ContextVar[torch.cuda.Stream | None] = ContextVar("polyvera_side_stream", default=None)


@contextmanager
def side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Adapted layers inside compute A x on that stream, also where a graph is captured; None: on the current one."""
    token = _SIDE.set(stream)
    try:
        yield
    finally:
        _SIDE.reset(token)


def fork() -> AbstractContextManager[Any] | None:
    """Inside, work runs beside what the current stream gets next, until join(); None where no stream was given."""
    side = _SIDE.get()
    if side is None:
        return None
    side.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(side)


def join() -> None:
    """What the current stream gets from here on waits for what was begun beside it."""
    side = _SIDE.get()
    if side is not None:
        torch.cuda.current_stream().wait_stream(side)
