"""Small copies between host and GPU that wait for nothing that they need not wait for.

A copy from or to ordinary memory makes the host wait for all that the GPU has to do. Pinned memory is torch's own: a
piece is not used again before the copy that reads it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def staged(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """Numbers as a tensor (len(values),) on the host, from where such a device copies them without a wait."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")


def to_device(given: Tensor | Sequence[float], device: torch.device, dtype: torch.dtype = torch.long) -> Tensor:
    """A tensor of the host, or numbers as one of shape (len(given),), on the device; the host waits for no GPU.

    dtype: of the tensor that is made of numbers.
    """
    host = given if isinstance(given, Tensor) else staged(given, device, dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def to_host(values: Tensor) -> Tensor:
    """A tensor on the host: waits until the GPU has computed it, and for nothing after it."""
    if not values.is_cuda:
        return values.cpu()
    host = values.to("cpu", non_blocking=True)  # torch makes it in pinned memory
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
    return host
