"""Rounding: the numbers that a store will give back take the place of the trained ones before those are scored."""

from __future__ import annotations

from dataclasses import replace

from polyvera.adapter.adapter import Adapter
from polyvera.store.file.codec import decode, encode
from polyvera.store.file.stored_dtype import stored_dtype_named

NUM_ROUNDING_ROWS = 256  # training rows whose loss is compared


def rounds(dtype: str) -> bool:
    """Whether a store in that dtype gives back other numbers than it was given. Raises FormatError."""
    return not stored_dtype_named(dtype).is_exact


def rounded(adapter: Adapter, dtype: str) -> Adapter:
    """The adapter as its file in that dtype gives it back. Raises FormatError."""
    return decode(encode(adapter, dtype)) if rounds(dtype) else adapter


def without_pruned(adapter: Adapter) -> Adapter:
    """The same adapter with zeros in A and B where d is 0, so that what is never stored scales nothing that is."""
    if not {"A", "B", "d"} <= set(adapter.layout.stored_letters):
        return adapter
    flat = adapter.flat.clone()
    pruned = replace(adapter, flat=flat)
    for site in adapter.layout.site_names:
        d, A, B = (pruned.tensors[f"{site}.{letter}"] for letter in ("d", "A", "B"))
        A.mul_((d != 0)[:, None])
        B.mul_(d != 0)
    return pruned
