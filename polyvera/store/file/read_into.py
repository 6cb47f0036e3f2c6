"""fill: the numbers of an adapter's file straight into the row of memory where they will be used."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from polyvera.errors import FormatError
from polyvera.store.file.codec import LENGTH_BYTES, Header, check_parts, header_text, is_finite

HEAD_BYTES = 4096
Row = NDArray[np.float32]


def fill(
    row: Row, descriptor: int, digest: str = "", takes: Callable[[Header], bool] = lambda header: True
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


def _read(descriptor: int, row: Row, digest: str) -> Header | None:
    if not hasattr(os, "preadv"):
        return None
    section = row.data.cast("B")
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        text = header_text(head, LENGTH_BYTES + len(head) + len(section))
        data_at = LENGTH_BYTES + len(text)
        beyond = bytearray(1)
        if data_at > len(head) or os.preadv(descriptor, [section, beyond], data_at) != len(section):
            return None
        header = check_parts(text, section, digest)
    except (FormatError, OSError):
        return None
    return header if header.index.is_flat and is_finite(row) else None
