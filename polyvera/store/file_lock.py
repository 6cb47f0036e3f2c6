"""exclusive: a file that one process, and one thread of it, holds at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Lock

from polyvera.store.regular_file import NO_FOLLOW

_lock = Lock()  # where the system has no locks of files


def exclusive(path: Path) -> AbstractContextManager[None]:
    """A context that only one caller at a time is in; waits for it. The file is made, and stays. Raises OSError."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _alone()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return _closing(descriptor)


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _alone() -> Iterator[None]:
    with _lock:
        yield
