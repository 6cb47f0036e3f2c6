"""What the device itself reaches: the rate of a copy, and that of a matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ceilings:
    """bytes_per_s: of a copy, bytes read plus bytes written. flops: of a bf16 product, operations a second."""

    bytes_per_s: float
    flops: float

    def floor_s(self, num_bytes: float, operations: float) -> float:
        """No run of so many bytes and operations is faster."""
        return max(num_bytes / self.bytes_per_s, operations / self.flops)


def synchronize(device: torch.device) -> None:
    """Waits for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, its work on the device included."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def interleaved(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each, all in turn within each round; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            seconds = seconds_of(run, device)
            if turn:
                times[name].append(seconds)
    return {name: median(several) for name, several in times.items()}


def measured(device: torch.device, dtype: torch.dtype, size: int) -> Ceilings:
    """A copy of 64 size² bytes, and a product of two random (size, size) matrices; medians of ten."""
    source = torch.empty(32 * size * size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    found = interleaved({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, 10, device)
    return Ceilings(2 * source.numel() / found["copy"], 2 * size**3 / found["product"])
