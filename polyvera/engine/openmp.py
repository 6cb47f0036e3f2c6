"""release, guest: a thread that is done multiplying keeps no OpenMP workers beside those of the engine's thread.

Each thread that multiplies gets workers of its own, which stay when it is done. Where all threads together keep more
workers than there are cores, libgomp's wait asleep instead of spinning, and every parallel region begins with waking
them: 1.4 to 1.6 times as long for a step of small products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

SOFT = 1  # omp_pause_soft of OpenMP 5.0: threads go, settings stay


def release() -> None:
    """Ends the calling thread's idle workers; its next parallel work makes new ones. Nothing where there are none."""
    pause = _pause()
    if pause is not None:
        pause(SOFT)


@contextmanager
def guest() -> Iterator[None]:
    """Work inside, in a thread that is not the engine's, leaves no OpenMP workers behind."""
    try:
        yield
    finally:
        release()


@cache
def _pause() -> Any:
    """OpenMP's own function, None where torch is built without OpenMP 5."""
    if not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        return ctypes.CDLL(None).omp_pause_resource_all  # torch loads its OpenMP for all to see
    except (OSError, TypeError, AttributeError):  # TypeError: Windows has no such handle
        return None
