"""The dtypes in which a stack of trained tensors is stored, and the error that each makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyvera.adapter.layout import Shape
from polyvera.errors import FormatError, did_you_mean
from polyvera.store.file.packed_bits import Numbers, largest_step, pack_steps, packed_size, unpack_steps

SCALE = ".scale"
INT8_MAX = 127
BYTE_BITS = 8
# The names of the safetensors format; a file holds its tensors in this order of dtype, then by name.
CODES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}
)
# How numpy reads the bytes of each; it has no bfloat16, whose bits are the upper half of a float32's.
ARRAYS: Mapping[torch.dtype, np.dtype[Any]] = MappingProxyType(
    {
        torch.float32: np.dtype("<f4"),
        torch.bfloat16: np.dtype("<u2"),
        torch.int8: np.dtype("i1"),
        torch.uint8: np.dtype("u1"),
    }
)
# What the scale of packed steps may be, as shares of the one that makes the largest value the largest step.
SHARES = tuple(0.15 + 0.85 * i / 23 for i in range(24))

Pack = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Array = NDArray[Any]
Unpack = Callable[[Array, Array | None, Numbers], object]


@dataclass(frozen=True, slots=True)
class StoredDtype:
    """One stored dtype.

    bits: of a number; those of less than 8 are packed, each entry into whole bytes. dtype: of the stored tensor.
    pack: (entries, size) fp32 -> the same in `dtype`, and one number in `scale` for each entry where that is a dtype.
    unpack: fills an fp32 (entries, size) with the inverse, from arrays of ARRAYS: an adapter is a few short rows, for
        each of which torch would take longer to begin than numpy to end. is_exact: whether it gives back every bit.
    format: the oldest format of a file that has it.
    """

    name: str
    bits: int
    dtype: torch.dtype
    pack: Pack
    unpack: Unpack
    scale: torch.dtype | None = None
    is_exact: bool = False
    format: int = 1

    def shape(self, entry: Shape) -> Shape:
        """The stored shape of one entry."""
        return entry if self.bits >= BYTE_BITS else (packed_size(prod(entry), self.bits),)


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric: the largest absolute value of an entry becomes ±127."""
    scale = rows.abs().amax(1) / INT8_MAX
    steps = rows / torch.where(scale > 0, scale, 1.0)[:, None]
    return steps.round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def _from_int8(values: Array, scale: Array | None, out: Numbers) -> None:
    assert scale is not None
    np.multiply(values, scale[:, None], out=out)


def _from_bfloat16(values: Array, _: Array | None, out: Numbers) -> None:
    np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)


def _to_bits(bits: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric: the scale is that of SHARES with the least squared error, rounded before it is tried."""
    most = largest_step(bits)
    largest = rows.abs().amax(1)
    part = rows / torch.where(largest > 0, largest, 1.0)[:, None]  # within ±1, whose squares are numbers
    scales = [(share * (largest / most)).bfloat16() for share in SHARES]
    errors = torch.stack([(_steps(rows, s, most) * (s / largest)[:, None] - part).square().sum(1) for s in scales])
    best = errors.nan_to_num(torch.inf).argmin(0)
    scale = torch.stack(scales).gather(0, best[None])[0]
    return torch.from_numpy(pack_steps(_steps(rows, scale, most).to(torch.int8).numpy(), bits)), scale


def _steps(rows: Tensor, scale: Tensor, most: int) -> Tensor:
    return (rows / torch.where(scale > 0, scale.float(), torch.inf)[:, None]).round().clamp(-most, most)


def _from_bits(bits: int, values: Array, scale: Array | None, out: Numbers) -> None:
    assert scale is not None
    unpack_steps(values, bits, out)
    np.multiply(out, widened(scale)[:, None], out=out)


def widened(scale: Array) -> Numbers:
    """Numbers in bfloat16, as ARRAYS reads them, in fp32."""
    found = np.empty(len(scale), np.float32)
    _from_bfloat16(scale, None, found)
    return found


def _packed(bits: int) -> StoredDtype:
    """bfloat16 scales, since those of a b that has hardly moved are below what float16 tells from 0."""
    ways = partial(_to_bits, bits), partial(_from_bits, bits)
    return StoredDtype(f"int{bits}", bits, torch.uint8, *ways, scale=torch.bfloat16, format=2)


STORED_DTYPES: Mapping[str, StoredDtype] = MappingProxyType(
    {
        row.name: row
        for row in (
            StoredDtype(
                "float32", 32, torch.float32, lambda x: (x, None), lambda x, _, out: np.copyto(out, x), is_exact=True
            ),
            StoredDtype("bfloat16", 16, torch.bfloat16, lambda x: (x.bfloat16(), None), _from_bfloat16),
            StoredDtype("int8", 8, torch.int8, _to_int8, _from_int8, scale=torch.float32),
            _packed(4),
            _packed(3),
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
