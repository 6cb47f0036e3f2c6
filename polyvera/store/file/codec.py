"""One adapter <-> the bytes of one safetensors file. docs/file-format.md describes them.

decode() takes bytes from anywhere: it returns the adapter that encode() was given, or raises FormatError.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from threading import Lock
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis, given_basis
from polyvera.adapter.layout import Layout, Stack
from polyvera.adapter.spec import GIVEN
from polyvera.errors import FormatError, PolyveraError
from polyvera.store.file.header import (
    FORMAT,
    NO_CHECKSUM,
    NO_DIGEST,
    OwnHeader,
    first_line,
    parsed,
    read_own,
    second_line,
)
from polyvera.store.file.packed_bits import Numbers
from polyvera.store.file.stored_dtype import SCALE, error_made, stored_dtype_named
from polyvera.store.file.tensor_index import BASIS_A, BASIS_B, TensorIndex, check_directory, index_of, index_within

KEY = "polyvera"
METADATA = "__metadata__"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 8 * 2**20
FIRSTS = tuple(rf"{{\"format\":{known},".encode() for known in range(1, FORMAT + 1))
UNSEALED = rf"\"digest\":\"{NO_DIGEST}\",\"checksum\":\"{NO_CHECKSUM}\"".encode()
AGAIN = "copy or publish it again from a good source"

# The second line as it lies in the header, between what all like files share: its quotes are escaped there.
LINE_END, OWN_END, NO_LINE = rb"}\n", b'}"', b"{}"

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has been checked against the whole file, whose data section begins at byte data_at."""

    index: TensorIndex
    own: OwnHeader
    data_at: int


def encode(adapter: Adapter, dtype: str = "float32") -> bytes:
    """The file of an adapter, the same bytes at every call; float32 keeps every bit, other dtypes do not.

    Raises FormatError for NaN or infinity, with the tensor's name, and for an unknown dtype.
    """
    stored = stored_dtype_named(dtype)
    flat = adapter.flat.detach().to("cpu", torch.float32).contiguous()
    _check_finite(adapter.layout, flat, "train it again, at a lower rate")
    line = first_line(adapter, stored.name)
    index = index_of(line)
    tensors = dict(_packed(index, flat))
    error = None if stored.is_exact else _error(index, tensors, flat)
    return _sealed(save(tensors | _basis_tensors(adapter), {KEY: f"{line}\n{second_line(adapter, error)}"}))


def decode(data: Buffer, digest: str = "") -> Adapter:
    """The adapter in the bytes of a file, in fp32; where `data` can be written to, its numbers may be a view of it.

    digest: the sha256 that the file must have, '' for any. Raises FormatError, saying what is wrong, for all else.
    """
    view = memoryview(data).cast("B")
    view = memoryview(bytearray(view)) if view.readonly else view
    header = read_header(view, digest)
    index, own = header.index, header.own
    section = view[header.data_at :]
    flat = _flat(index, section)
    _check_finite(index.layout, flat, AGAIN)
    given = _basis(index, section)
    known = (own.base, own.scores, own.created, own.model, tuple(own.labels), own.lr, own.prompt_form)
    try:
        return Adapter(
            index.spec, index.layout, flat, index.basis_sha256, given, *known, own.task, own.threshold, own.origin
        )
    except PolyveraError as error:  # parts that are each right, and do not belong together
        raise FormatError(f"its header describes no adapter that can be: {error}") from error


def read_header(data: Buffer, digest: str = "") -> Header:
    """The header of a whole file, with every byte of it checked against its checksum. Raises FormatError.

    digest: the sha256 that the file must have, '' for any.
    """
    view = memoryview(data).cast("B")
    text = header_text(view, len(view))
    return check_parts(text, view[LENGTH_BYTES + len(text) :], digest)


def check_parts(text: bytes, section: memoryview, digest: str = "") -> Header:
    """read_header() of a file in two parts: the text of its header, and its data section. Raises FormatError."""
    around, line = _parted(text)
    if not any(first in around[0] for first in FIRSTS):
        _indexes.of(*around, len(section))  # a newer format is refused before its second line is read
    own = read_own(line)
    blank = _blanked(text, "checksum", own.checksum)
    _check_sum("checksum", own.checksum, _sum(xxhash.xxh3_128, blank, section))
    if digest and own.digest != digest:
        raise FormatError(
            f"it is a whole adapter file, but of digest {own.digest[:12]}, not {digest[:12]} as asked for"
        )
    if digest:
        _check_sum("digest", own.digest, _sum(hashlib.sha256, _blanked(blank, "digest", own.digest), section))
    index = _indexes.of(*around, len(section))
    return Header(index, own, LENGTH_BYTES + len(text))


def check_promise(head: Buffer, num_bytes: int) -> None:
    """Raises FormatError unless the first bytes of a file are a header that promises its num_bytes."""
    text = header_text(memoryview(head), num_bytes)
    _indexes.of(*_parted(text)[0], num_bytes - LENGTH_BYTES - len(text))


def check_digest(data: Buffer) -> None:
    """Reads a whole file's sha256, which is slower than the checksum and no accident's or forger's work meets.

    Raises FormatError where the file has another one than it states.
    """
    view = memoryview(data).cast("B")
    read_header(view, read_header(view).own.digest)


def _packed(index: TensorIndex, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    for stack in index.layout.stacks:
        values, scale = index.stored.pack(_rows(stack, flat[stack.offset : stack.offset + stack.size]))
        yield stack.key, values.view(index.tensors[stack.key].shape)
        if scale is not None:
            yield stack.key + SCALE, scale


def _error(index: TensorIndex, tensors: Mapping[str, Tensor], flat: Tensor) -> dict[str, float]:
    """What rounding loses. Raises FormatError for values that it makes infinite."""
    restored = _unpacked(index, _section(index, tensors))
    _check_finite(index.layout, restored, f"its values are out of the range of {index.stored.name}; store float32")
    return error_made(flat, restored)


def _section(index: TensorIndex, tensors: Mapping[str, Tensor]) -> memoryview:
    """The data section of a file of those tensors, with zeros for the others."""
    section = bytearray(index.data_bytes)
    for name, tensor in tensors.items():
        at = index.tensors[name]
        section[at.begin : at.end] = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return memoryview(section)


def _flat(index: TensorIndex, section: memoryview) -> Tensor:
    """The flat vector in fp32: the data section itself where it is stored as it is."""
    if index.flat_at is None:
        return _unpacked(index, section)
    return torch.frombuffer(section, dtype=torch.float32, count=index.layout.num_params, offset=index.flat_at)


def _unpacked(index: TensorIndex, section: memoryview) -> Tensor:
    """The flat vector in fp32."""
    flat = torch.empty(index.layout.num_params)
    unpack(index, section, flat.numpy())
    return flat


def unpack(index: TensorIndex, section: memoryview, flat: Numbers) -> None:
    """Fills the flat vector with the numbers of a data section, which may be of any size. Raises FormatError."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        if index.joined_stacks is not None:
            index.joined_stacks.unpack(index.stored.bits, section, flat)
        else:
            for stack in index.packed_stacks:
                stack.unpack(index.stored, section, flat)


def _rows(stack: Stack, values: Tensor) -> Tensor:
    return values.reshape(len(stack.entries), -1)


def _basis_tensors(adapter: Adapter) -> dict[str, Tensor]:
    key = adapter.layout.basis
    is_inside = key is not None and key.init == GIVEN and not adapter.spec.made_basis
    basis = adapter.basis() if is_inside else None
    return {} if basis is None else {BASIS_A: basis.A, BASIS_B: basis.B}


def _basis(index: TensorIndex, section: memoryview) -> Basis | None:
    if BASIS_A not in index.tensors:
        return None
    basis = given_basis(*(index.tensors[name].read(section).clone() for name in (BASIS_A, BASIS_B)))
    if basis.sha256 != index.basis_sha256:
        raise FormatError(
            f"its basis has sha256 {basis.sha256[:12]}, its header says {index.basis_sha256[:12]}: {AGAIN}"
        )
    return basis


def is_finite(values: Numbers) -> bool:
    """Whether no number is NaN or infinity: the sum of squares is neither then, unless it is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        return isfinite(np.dot(values, values)) or bool(np.isfinite(values).all())


def _check_finite(layout: Layout, flat: Tensor, advice: str) -> None:
    if not is_finite(flat.numpy()):
        bad = next(k for k, e in layout.entries.items() if not flat[e.offset : e.offset + e.size].isfinite().all())
        raise FormatError(f"{bad} holds NaN or infinity; {advice}")


def header_text(head: memoryview | bytes, num_bytes: int) -> bytes:
    """The header in the first bytes of a file of num_bytes; shorter where they do not hold it. Raises FormatError."""
    if num_bytes < LENGTH_BYTES + 2:
        raise FormatError(f"{num_bytes} bytes are too few for an adapter file: it was cut off; {AGAIN}")
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if length > min(MAX_HEADER_BYTES, num_bytes - LENGTH_BYTES) or length % LENGTH_BYTES:
        raise FormatError(
            f"it states a header of {length} bytes in a file of {num_bytes} (polyvera writes multiples of "
            f"{LENGTH_BYTES} up to {MAX_HEADER_BYTES}): it was cut off, or is not an adapter file; {AGAIN}"
        )
    return bytes(head[LENGTH_BYTES : LENGTH_BYTES + length])


def _parted(text: bytes) -> tuple[tuple[bytes, bytes], str]:
    """What is around the second line, which is the same text in all like files, and that line."""
    before, between, rest = text.partition(LINE_END)
    escaped, quote, after = rest.partition(OWN_END)
    if not (between and quote):
        _lines(parsed(text, "its header"))  # raises for all files but those of another writer
        raise FormatError(f"its metadata is not laid out as polyvera writes it: it is damaged; {AGAIN}")
    try:
        line = json.loads(f'"{escaped.decode()}}}"')
    except ValueError as error:
        raise FormatError(f"its header is not JSON ({error}): it is damaged or no adapter file") from error
    return (before + between, quote[1:] + after.rstrip(b" ")), str(line)


class IndexCache:
    """The indexes of files that passed: headers that differ only in their second lines have one. Any number of threads.

    Bounded by the layers that they name, which is what they take memory for.
    """

    def __init__(self, max_sites: int) -> None:
        self._max_sites, self._num_sites = max_sites, 0
        self._found: OrderedDict[tuple[bytes, bytes, int], TensorIndex] = OrderedDict()
        self._lock = Lock()

    def of(self, before: bytes, after: bytes, data_bytes: int) -> TensorIndex:
        """The index of what is around a second line, of a file with so many bytes of data. Raises FormatError."""
        key = before, after, data_bytes
        with self._lock:
            found = self._found.get(key)
        return found or self._kept(key, _index_around(*key))

    def _kept(self, key: tuple[bytes, bytes, int], index: TensorIndex) -> TensorIndex:
        with self._lock:
            if key in self._found:
                return self._found[key]
            self._found[key] = index
            self._num_sites += len(index.layout.sites)
            while self._num_sites > self._max_sites and len(self._found) > 1:
                self._num_sites -= len(self._found.popitem(last=False)[1].layout.sites)
        return index


_indexes = IndexCache(max_sites=200_000)


def _index_around(before: bytes, after: bytes, data_bytes: int) -> TensorIndex:
    tree = parsed(before + NO_LINE + after, "its header")
    common_line, own_line = _lines(tree)
    if own_line.encode() != NO_LINE:
        raise FormatError(f"its metadata is not the two lines of an adapter file: it is damaged; {AGAIN}")
    index = index_within(common_line, data_bytes)
    check_directory(tree, index)
    if index.data_bytes != data_bytes:
        raise FormatError(f"it has {data_bytes} bytes of data, its header describes {index.data_bytes}")
    return index


def _lines(tree: dict[str, Any]) -> tuple[str, str]:
    """The two lines, taken out of the header."""
    metadata = tree.pop(METADATA, None)
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(
            f"it is a safetensors file of {len(tree)} tensors ({min(tree, default='none')!r} is one) without the "
            "header of an adapter: a plain model, or an adapter of PEFT, whose folder import_peft() reads"
        )
    lines = text.split("\n")
    if len(lines) != 2 or metadata != {KEY: text}:
        raise FormatError(f"its metadata is not the two lines of an adapter file: it is damaged; {AGAIN}")
    return lines[0], lines[1]


def _blanked(text: bytes, name: str, digits: str) -> bytes:
    """The header with zeros for the digits of a sum. Raises FormatError where they are not in it just once."""
    found = digits.encode()
    if text.count(found) != 1:
        raise FormatError(
            f"its header does not hold the {name} {digits[:12]} just once: it is damaged or no file of polyvera's"
        )
    return text.replace(found, b"0" * len(found))


def _check_sum(name: str, stated: str, actual: str) -> None:
    if actual != stated:
        raise FormatError(
            f"its {name} is {actual[:12]}, its header says {stated[:12]}: it was damaged or cut off; {AGAIN}"
        )


def _sum(new: Callable[[bytes], Any], text: bytes, section: memoryview) -> str:
    """The hash of all bytes of a file."""
    hasher = new(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    hasher.update(section)
    return str(hasher.hexdigest())


def _sealed(data: bytes) -> bytes:
    """The file with its sums in place of the zeros."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"the header would take {length} bytes, the most is {MAX_HEADER_BYTES}: adapt fewer kinds of layers"
        )
    at = data.index(UNSEALED)
    digest_at, checksum_at = at + UNSEALED.index(b"0"), at + UNSEALED.rindex(NO_CHECKSUM.encode())
    for new, begin in ((hashlib.sha256, digest_at), (xxhash.xxh3_128, checksum_at)):
        digits = new(data).hexdigest().encode()
        data = data[:begin] + digits + data[begin + len(digits) :]
    return data
