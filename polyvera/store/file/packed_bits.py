"""Signed steps of 3 or 4 bits, packed into bytes.

Step i of a row is bits k·i to k·(i+1) of the row's bytes, the lowest bit of a byte first, in two's complement. Rows
begin at whole bytes, and bits that are left over at the end of a row are 0. The lowest step, -2^(k-1), is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from polyvera.errors import FormatError

Steps = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float32]


def largest_step(bits: int) -> int:
    """The largest step in so many bits: 7 in 4, 3 in 3."""
    return int(2 ** (bits - 1) - 1)


def packed_size(num: int, bits: int) -> int:
    """The bytes of a row of so many steps."""
    return -(-num * bits // 8)


def pack_steps(steps: Steps, bits: int) -> Bytes:
    """(rows, num) -> (rows, packed_size(num, bits))"""
    found = np.unpackbits(steps.view(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(found.reshape(len(steps), -1), axis=1, bitorder="little")


def unpack_steps(packed: Bytes, bits: int, out: Numbers) -> None:
    """Fills out (rows, num) with the steps of packed (rows, packed_size(num, bits)); the lowest step reads as NaN.

    Raises FormatError where bits that are left over are not 0.
    """
    num, unpack = _CHUNKS[bits]
    if out.shape[1] % num:
        unpack_naive(packed, bits, out)
    else:
        unpack(packed.reshape(-1), out.reshape(-1))


def unpack_naive(packed: Bytes, bits: int, out: Numbers) -> None:
    """unpack_steps() bit by bit: the reference, and the way of rows that end within a chunk."""
    found = np.unpackbits(packed, axis=1, bitorder="little")
    used = out.shape[1] * bits
    if found[:, used:].any():
        raise FormatError("bits beyond its numbers are not 0")
    codes = np.packbits(found[:, :used].reshape(len(packed), -1, bits), axis=-1, bitorder="little")[..., 0]
    out[:] = _values(bits)[codes]


def _values(bits: int) -> Numbers:
    """The step of each code."""
    values = np.arange(2**bits, dtype=np.float32)
    values[values > largest_step(bits)] -= 2**bits
    values[2 ** (bits - 1)] = np.nan
    return values


@cache
def _table(bits: int, num: int) -> NDArray[np.void]:
    """The `num` steps in each number of num·bits bits, as one item of memory, so that a look-up copies them all."""
    codes = np.arange(2 ** (bits * num))[:, None] >> (bits * np.arange(num)) & (2**bits - 1)
    items: NDArray[np.void] = _values(bits)[codes].view(f"V{4 * num}")[:, 0]
    return items


def _unpack_4(packed: Bytes, out: Numbers) -> None:
    """A byte is two steps."""
    np.take(_table(4, 2), packed, out=out.view("V8"), mode="clip")


def _unpack_3(packed: Bytes, out: Numbers) -> None:
    """Three bytes are two halves of four steps."""
    low, middle, high = packed.reshape(-1, 3).T.astype(np.intp)
    halves = np.empty((len(low), 2), np.intp)
    halves[:, 0] = low | (middle & 15) << 8
    halves[:, 1] = middle >> 4 | high << 4
    np.take(_table(3, 4), halves.reshape(-1), out=out.view("V16"), mode="clip")


# By bits: the steps of the smallest whole number of bytes, and the way to unpack as many of those as come.
_CHUNKS: Mapping[int, tuple[int, Callable[[Bytes, Numbers], None]]] = MappingProxyType(
    {3: (8, _unpack_3), 4: (2, _unpack_4)}
)
