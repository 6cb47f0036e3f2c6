"""Which tensors an adapter file holds, and where: all of it decided by the first line of the header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyvera.adapter.layout import Layout, Shape, Stack, layout_of
from polyvera.adapter.spec import GIVEN, AdapterSpec, BasisKey
from polyvera.errors import FormatError, PolyveraError
from polyvera.store.file.header import CommonHeader, read_common
from polyvera.store.file.layer_pattern import MAX_SITES, num_layers, unfold
from polyvera.store.file.packed_bits import Numbers, unpack_steps
from polyvera.store.file.stored_dtype import (
    ARRAYS,
    BYTE_BITS,
    CODES,
    SCALE,
    StoredDtype,
    stored_dtype_named,
    widened,
)

BASIS_A, BASIS_B = "basis.A", "basis.B"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its dtype, shape and place in the data section, in bytes."""

    dtype: torch.dtype
    shape: Shape
    begin: int
    end: int

    def read(self, section: memoryview) -> Tensor:
        """A view of the data section."""
        return torch.frombuffer(section[self.begin : self.end], dtype=self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class PackedArray:
    """A tensor of a file as numpy reads it, from byte `begin` of the data section."""

    dtype: np.dtype[Any]
    shape: Shape
    begin: int

    def read(self, section: memoryview) -> NDArray[Any]:
        """A view of the data section."""
        return np.ndarray(self.shape, self.dtype, section, self.begin)


@dataclass(frozen=True, slots=True)
class PackedStack:
    """The values (entries, size) and scales (entries) of a stack: places in the data section and the flat vector."""

    values: PackedArray
    scale: PackedArray | None
    begin: int
    end: int

    def __len__(self) -> int:
        """Entries."""
        return self.values.shape[0]

    def unpack(self, stored: StoredDtype, section: memoryview, flat: Numbers) -> None:
        """Fills its part of the flat vector."""
        values = self.values.read(section)
        out = flat[self.begin : self.end].reshape(len(values), -1)
        stored.unpack(values, None if self.scale is None else self.scale.read(section), out)


@dataclass(frozen=True, slots=True)
class JoinedStacks:
    """Packed stacks that lie one after the other in the file as in the flat vector, without bits between their rows.

    values (1, bytes) and scale (entries) of all of them. parts: (first entry, one past the last, begin, end) of each.
    """

    values: PackedArray
    scale: PackedArray
    parts: tuple[tuple[int, int, int, int], ...]

    def unpack(self, bits: int, section: memoryview, flat: Numbers) -> None:
        """Fills the flat vector, by one look-up for all."""
        unpack_steps(self.values.read(section), bits, flat[None])
        scale = widened(self.scale.read(section))
        for first, stop, begin, end in self.parts:
            rows = flat[begin:end].reshape(stop - first, -1)
            np.multiply(rows, scale[first:stop, None], out=rows)


@dataclass(frozen=True, eq=False)
class TensorIndex:
    """What the first line of a header decides. tensors: those of the file, in file order."""

    spec: AdapterSpec
    layout: Layout
    stored: StoredDtype
    basis_sha256: str
    tensors: dict[str, StoredTensor]

    @cached_property
    def directory(self) -> dict[str, Any]:
        """The safetensors header that a file of this index has, its metadata left out."""
        return {
            name: {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": [t.begin, t.end]}
            for name, t in self.tensors.items()
        }

    @cached_property
    def data_bytes(self) -> int:
        """The length of the data section."""
        return max(t.end for t in self.tensors.values())

    @cached_property
    def packed_stacks(self) -> tuple[PackedStack, ...]:
        """Where each stack of the flat vector lies."""
        return tuple(map(self._packed, self.layout.stacks))

    @cached_property
    def joined_stacks(self) -> JoinedStacks | None:
        """The stacks as one, where they are of packed steps and lie so."""
        stacks, bits = self.packed_stacks, self.stored.bits
        if bits >= BYTE_BITS or any((s.end - s.begin) // len(s) * bits % BYTE_BITS for s in stacks):
            return None
        counts = [0, *accumulate(map(len, stacks))]
        first, scales = stacks[0].values.begin, [self.tensors[s.key + SCALE] for s in self.layout.stacks]
        values_at = [first + s.begin * bits // BYTE_BITS for s in stacks]
        scales_at = [scales[0].begin + scales[0].dtype.itemsize * n for n in counts[:-1]]
        if values_at != [s.values.begin for s in stacks] or scales_at != [s.begin for s in scales]:
            return None
        size = self.layout.num_params * bits // BYTE_BITS
        parts = tuple((a, b, s.begin, s.end) for a, b, s in zip(counts[:-1], counts[1:], stacks, strict=True))
        dtypes = ARRAYS[self.stored.dtype], ARRAYS[scales[0].dtype]
        return JoinedStacks(
            PackedArray(dtypes[0], (1, size), first), PackedArray(dtypes[1], (counts[-1],), scales[0].begin), parts
        )

    def _packed(self, stack: Stack) -> PackedStack:
        values, num = self.tensors[stack.key], len(stack.entries)
        dtype, scale = ARRAYS[values.dtype], None
        if self.stored.scale is not None:
            scale = PackedArray(ARRAYS[self.stored.scale], (num,), self.tensors[stack.key + SCALE].begin)
        shape = num, (values.end - values.begin) // dtype.itemsize // num
        return PackedStack(PackedArray(dtype, shape, values.begin), scale, stack.offset, stack.offset + stack.size)

    @cached_property
    def flat_at(self) -> int | None:
        """Where the flat vector lies in the data section as it is, or None where it has to be put together."""
        places = [self.tensors[s.key].begin - 4 * s.offset for s in self.layout.stacks]
        return places[0] if self.stored.is_exact and len(set(places)) == 1 else None


@lru_cache(maxsize=256)
def index_of(line: str) -> TensorIndex:
    """The index of a first line that was written here, the same object for the same text. Raises FormatError."""
    common = read_common(line)
    return _index(common, common.adapter_spec)


def index_within(line: str, data_bytes: int) -> TensorIndex:
    """The index of a first line of a file with so many bytes of data, compared before anything is made of it.

    Raises FormatError.
    """
    common = read_common(line)
    spec = common.adapter_spec
    least = _least_bytes(common, spec)
    if least > data_bytes:
        raise FormatError(f"its layers need at least {least} bytes of data, it has {data_bytes}")
    return _index(common, spec)


def _least_bytes(common: CommonHeader, spec: AdapterSpec) -> int:
    """What the layers' own numbers take; layers whose rank is named apart are left out. Raises FormatError."""
    counts = [num_layers(pattern) for pattern in common.sites]
    if sum(counts) > MAX_SITES:
        raise FormatError(f"its header names more than {MAX_SITES} layers")
    rank = spec.common_rank
    made = spec.row.tied if spec.hash_size is None else spec.row.tied + spec.row.hashed
    own = [letter for letter in spec.row.trained if letter not in made]
    ranks = [spec.row.rank_within(rank, p.widths[1]) for p in common.sites]
    sizes = [
        sum(prod(spec.row.shape(letter, own_rank, *p.widths)) for letter in own)
        for p, own_rank in zip(common.sites, ranks, strict=True)
    ]
    named = len(spec.rank_pattern) * max(sizes)
    num = sum(count * size for count, size in zip(counts, sizes, strict=True)) - named
    return num * stored_dtype_named(common.dtype).bits // BYTE_BITS


def _index(common: CommonHeader, spec: AdapterSpec) -> TensorIndex:
    stored = stored_dtype_named(common.dtype)
    widths = unfold(common.sites)
    try:
        layout = layout_of(spec, widths, {k: tuple(shape) for k, shape in common.head.items()})
    except PolyveraError as error:
        raise FormatError(f"its header describes an impossible adapter: {error}") from error
    layout = replace(layout, basis=_basis_key(common, layout.basis, spec))
    sha256 = (common.basis.sha256 or "") if common.basis else ""
    return TensorIndex(spec, layout, stored, sha256, _placed(spec, layout, stored))


def _basis_key(common: CommonHeader, least: BasisKey | None, spec: AdapterSpec) -> BasisKey | None:
    """The key that the header names, where it is as wide as the layers need."""
    if common.basis is None or least is None:
        if common.basis is not None or least is not None:
            method = common.spec.get("method")
            raise FormatError(f"its header gives method {method!r} with the basis {common.basis}")
        return None
    key = common.basis.key
    if key.rank != least.rank or key.in_max < least.in_max or key.out_max < least.out_max:
        raise FormatError(f"its header names the basis {key}, but its layers need {least}")
    if key.init == GIVEN and not key.sha256:
        raise FormatError("its header names a basis that no key draws, without the sha256 that identifies it")
    if spec.made_basis and key.sha256 != spec.made_basis:
        raise FormatError(f"its header names the basis {key}, and its spec the made one {spec.made_basis[:12]}")
    return key


def _placed(spec: AdapterSpec, layout: Layout, stored: StoredDtype) -> dict[str, StoredTensor]:
    """Every tensor of a file in file order, as safetensors has it: by dtype, then by name, without gaps."""
    tensors: dict[str, StoredTensor] = {}
    order, at = list(CODES), 0
    for name, dtype, shape in sorted(_stored(spec, layout, stored), key=lambda t: (order.index(t[1]), t[0])):
        if name in tensors:
            raise FormatError(f"two tensors of this adapter would be called {name!r} in its file; rename the head's")
        end = at + dtype.itemsize * prod(shape)
        tensors[name] = StoredTensor(dtype, shape, at, end)
        at = end
    return tensors


def _stored(spec: AdapterSpec, layout: Layout, stored: StoredDtype) -> Iterator[tuple[str, torch.dtype, Shape]]:
    for stack in layout.stacks:
        yield stack.key, stored.dtype, stack.of_all(stored.shape(stack.entries[0].shape))
        if stored.scale is not None:
            yield stack.key + SCALE, stored.scale, (len(stack.entries),)
    key = layout.basis
    if key is not None and key.init == GIVEN and not spec.made_basis:
        yield BASIS_A, torch.float32, (key.rank, key.in_max)
        yield BASIS_B, torch.float32, (key.out_max, key.rank)


def check_directory(given: dict[str, Any], index: TensorIndex) -> None:
    """Raises FormatError unless the file has exactly the tensors of its index, in place."""
    if given != index.directory:
        raise FormatError(f"{_difference(given, index.directory)}: it was not written by polyvera")


def _difference(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for name in sorted({*given, *wanted}):
        if given.get(name) != wanted.get(name):
            return f"its tensor {name!r} is {given.get(name, 'missing')}, and {wanted.get(name, 'none')} by its spec"
    return "its tensors are not those of its spec"
