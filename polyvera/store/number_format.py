"""The dtype of numbers that other programs read: the narrowest that keeps every bit, or the one asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from polyvera.adapter.spec import DTYPES
from polyvera.errors import SpecError, did_you_mean

FULL = torch.float32
HALVES = (torch.bfloat16, torch.float16)


def exact_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """A half in which every number stays as it is, so that what came in halves leaves in halves; else float32."""
    several = [t.float() for t in tensors]
    return next((half for half in HALVES if all(_is_exact(t, half) for t in several)), FULL)


def written(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous copies in that dtype, which share no memory with anything."""
    return {k: t.detach().to(dtype).clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of that name. Raises SpecError."""
    if name not in DTYPES:
        raise SpecError(f"dtype={name!r} must be one of: {', '.join(DTYPES)}{did_you_mean(name, DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _is_exact(tensor: Tensor, half: torch.dtype) -> bool:
    return bool(torch.equal(tensor.to(half).float(), tensor))
