"""The bytes of an adapter's file, counted before its numbers are rounded."""

from __future__ import annotations

import torch
from safetensors.torch import save

from polyvera.adapter.adapter import Adapter
from polyvera.store.file.codec import KEY
from polyvera.store.file.header import first_line, second_line
from polyvera.store.file.stored_dtype import error_made, stored_dtype_named
from polyvera.store.file.tensor_index import index_of


def num_file_bytes(adapter: Adapter, dtype: str = "float32") -> int:
    """The bytes of such an adapter's file, to some digits of the error of its rounding, which is not made.

    Raises FormatError for an unknown dtype.
    """
    line = first_line(adapter, stored_dtype_named(dtype).name)
    index = index_of(line)
    tensors = {name: torch.zeros(at.shape, dtype=at.dtype) for name, at in index.tensors.items()}
    error = None if index.stored.is_exact else error_made(adapter.flat, adapter.flat * 0.99)
    return len(save(tensors, {KEY: f"{line}\n{second_line(adapter, error)}"}))
