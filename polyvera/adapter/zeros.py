"""zeros: a large tensor of zeros whose memory is taken page by page, as it is written."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor


def zeros(shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """torch.zeros; on the CPU no memory is touched before the first write."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    num_bytes = prod(shape) * dtype.itemsize
    # numpy asks the system for fresh pages, which are zero already; torch would write every byte.
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
