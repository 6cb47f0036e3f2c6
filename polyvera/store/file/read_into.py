"""fill: the numbers of an adapter's file straight into the row of memory where they will be used."""

from __future__ import annotations

import os
from collections.abc import Callable

from polyvera.errors import FormatError
from polyvera.store.file.codec import LENGTH_BYTES, Header, check_parts, header_text, is_finite, unpack
from polyvera.store.file.packed_bits import Numbers
from polyvera.store.file.tensor_index import BASIS_A, TensorIndex

HEAD_BYTES = 4096


def fill(
    row: Numbers, descriptor: int, digest: str = "", takes: Callable[[Header], bool] = lambda header: True
) -> Header | None:
    """The header of a file whose flat vector, every byte checked, is now in `row`; the file is open for reading.

    Else None, and `row` is zeros, and the file is for decode(), which says why or unpacks it. digest: as for decode().
    takes: whether a checked header is of what is wanted.
    """
    header = _read(descriptor, row, digest)
    if header is not None and takes(header):
        return header
    row[:] = 0.0
    return None


def _read(descriptor: int, row: Numbers, digest: str) -> Header | None:
    if not hasattr(os, "preadv"):
        return None
    section = row.data.cast("B")
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        text = header_text(head, LENGTH_BYTES + len(head) + len(section))
        data_at = LENGTH_BYTES + len(text)
        beyond = bytearray(1)
        num_bytes = os.preadv(descriptor, [section, beyond], data_at)
        if data_at > len(head) or num_bytes > len(section):
            return None
        header = check_parts(text, section[:num_bytes], digest)
        return header if _unpacked(header.index, section[:num_bytes], row) and is_finite(row) else None
    except (FormatError, OSError):
        return None


def _unpacked(index: TensorIndex, section: memoryview, row: Numbers) -> bool:
    """Whether the row is the flat vector now, whose memory the section lies in."""
    if index.layout.num_params != len(row) or BASIS_A in index.tensors:
        return False
    if index.flat_at is None:
        unpack(index, memoryview(bytes(section)), row)
    return True
