"""The most memory that this process has held."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_bytes() -> int:
    """The most memory since the start of the process, or since forget_peak() where the kernel keeps that."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak() -> None:
    """Restarts the kernel's count of the peak, where it can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
