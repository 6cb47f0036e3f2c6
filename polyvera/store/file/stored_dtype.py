"""The dtypes in which a stack of trained tensors is stored, and the error that each makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from polyvera.errors import FormatError, did_you_mean

SCALE = ".scale"
INT8_MAX = 127
# The names of the safetensors format; a file holds its tensors in this order of dtype, then by name.
CODES: Mapping[torch.dtype, str] = MappingProxyType({torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"})

Pack = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Unpack = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class StoredDtype:
    """One stored dtype.

    pack: (entries, size) fp32 -> the same in `dtype`, and one fp32 scale for each entry where `has_scale`. unpack: the
    inverse, to fp32. is_exact: whether unpack gives back every bit.
    """

    name: str
    dtype: torch.dtype
    pack: Pack
    unpack: Unpack
    has_scale: bool = False
    is_exact: bool = False


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric: the largest absolute value of an entry becomes ±127."""
    scale = rows.abs().amax(1) / INT8_MAX
    steps = rows / torch.where(scale > 0, scale, 1.0)[:, None]
    return steps.round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def _from_int8(rows: Tensor, scale: Tensor | None) -> Tensor:
    assert scale is not None
    return rows.float() * scale[:, None]


STORED_DTYPES: Mapping[str, StoredDtype] = MappingProxyType(
    {
        row.name: row
        for row in (
            StoredDtype("float32", torch.float32, lambda x: (x, None), lambda x, scale: x, is_exact=True),
            StoredDtype("bfloat16", torch.bfloat16, lambda x: (x.bfloat16(), None), lambda x, scale: x.float()),
            StoredDtype("int8", torch.int8, _to_int8, _from_int8, has_scale=True),
        )
    }
)


def stored_dtype_named(name: str) -> StoredDtype:
    """The stored dtype of that name. Raises FormatError, with the nearest name, where there is none."""
    if name not in STORED_DTYPES:
        raise FormatError(
            f"stored dtype {name!r} must be one of: {', '.join(STORED_DTYPES)}{did_you_mean(name, STORED_DTYPES)}"
        )
    return STORED_DTYPES[name]


def error_made(exact: Tensor, stored: Tensor) -> dict[str, float]:
    """The largest absolute difference, and the L2 norm of all differences over that of the values."""
    difference, norm = (stored.double() - exact.double()), exact.double().norm()
    relative = float(difference.norm() / norm) if norm > 0 else 0.0
    return {"max_abs": float(difference.abs().max()) if len(exact) else 0.0, "relative_l2": relative}
