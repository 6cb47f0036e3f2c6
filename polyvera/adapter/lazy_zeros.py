"""zeros: a large tensor of zeros whose memory is taken page by page, as it is written."""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def zeros(shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype, sparse: bool = False) -> Tensor:
    """torch.zeros; on the CPU no memory is touched before the first write.

    sparse: for one that will be written here and there, so that each place takes a page of the smallest size (4 KiB,
    where huge pages of 2 MiB are usual for large tensors).
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, device=device, dtype=dtype)
    num_bytes = prod(shape) * dtype.itemsize
    return torch.from_numpy(_small_pages(num_bytes) if sparse else _pages(num_bytes)).view(dtype).view(shape)


def _pages(num_bytes: int) -> NDArray[np.uint8]:
    # numpy asks the system for fresh pages, which are zero already; torch would write every byte.
    return np.zeros(num_bytes, dtype=np.uint8)


def _small_pages(num_bytes: int) -> NDArray[np.uint8]:
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return _pages(num_bytes)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)
