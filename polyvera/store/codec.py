"""One adapter <-> the bytes of one safetensors file. docs/file-format.md describes them.

decode() takes bytes from anywhere: it returns the adapter that encode() was given, or raises FormatError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis, given_basis
from polyvera.adapter.layout import Layout, Stack
from polyvera.adapter.spec import GIVEN
from polyvera.errors import FormatError
from polyvera.store.directory import BASIS_A, BASIS_B, Plan, check_directory, plan_of
from polyvera.store.header import FORMAT, NO_DIGEST, Own, first_line, parsed, read_kind, read_own, second_line
from polyvera.store.packing import SCALE, error_made, packing_named

KEY = "polyvera"
METADATA = "__metadata__"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 8 * 2**20
FIRST = f'{{"format":{FORMAT},'
ZEROS = NO_DIGEST.encode()
BEFORE_DIGEST = rb"\"digest\":\""
AGAIN = "copy or publish it again from a good source"

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has been checked against the whole file, whose data section begins at byte data_at."""

    plan: Plan
    own: Own
    data_at: int


def encode(adapter: Adapter, dtype: str = "float32") -> bytes:
    """The file of an adapter, the same bytes at every call; float32 keeps every bit, bfloat16 and int8 do not.

    Raises FormatError for NaN or infinity, with the tensor's name, and for an unknown dtype.
    """
    packing = packing_named(dtype)
    flat = adapter.flat.detach().to("cpu", torch.float32).contiguous()
    _check_finite(adapter.layout, flat, "train it again, at a lower rate")
    line = first_line(adapter, packing.name)
    plan = plan_of(line)
    if plan.layout.key() != adapter.layout.key():
        raise FormatError(
            "the adapter's layout is not the one that its spec gives on its layers; it would be read wrong"
        )
    tensors = dict(_packed(plan, flat))
    restored = _unpacked(plan, tensors)
    _check_finite(plan.layout, restored, f"its values are out of the range of {packing.name}; store float32")
    error = None if packing.is_exact else error_made(flat, restored)
    return _sealed(save(tensors | _basis_tensors(adapter), {KEY: f"{line}\n{second_line(adapter, error)}"}))


def decode(data: Buffer, digest: str = "") -> Adapter:
    """The adapter in the bytes of a file, in fp32; where `data` can be written to, its numbers may be a view of it.

    digest: the sha256 that the file must have, '' for any. Raises FormatError, saying what is wrong, for all else.
    """
    view = memoryview(data).cast("B")
    view = memoryview(bytearray(view)) if view.readonly else view
    header = read_header(view, digest)
    plan, own = header.plan, header.own
    section = view[header.data_at :]
    flat = _flat(plan, section)
    _check_finite(plan.layout, flat, AGAIN)
    given = _basis(plan, section)
    known = (own.base, own.scores, own.created, own.model, tuple(own.labels))
    return Adapter(plan.spec, plan.layout, flat, plan.basis_sha256, given, *known)


def read_header(data: Buffer, digest: str = "") -> Header:
    """The header of a whole file, with every byte of the file checked against its digest. Raises FormatError."""
    view = memoryview(data).cast("B")
    text = _header_text(view)
    tree = parsed(text, "its header")
    kind_line, own_line = _lines(tree.pop(METADATA, None), tree)
    if not kind_line.startswith(FIRST):
        read_kind(kind_line)  # a newer format is refused before its second line is read
    own = read_own(own_line)
    _check_digest(view, text, own.digest)
    if digest and own.digest != digest:
        raise FormatError(
            f"it is a whole adapter file, but of digest {own.digest[:12]}, not {digest[:12]} as asked for"
        )
    plan, data_at = plan_of(kind_line), LENGTH_BYTES + len(text)
    check_directory(tree, plan, len(view) - data_at)
    return Header(plan, own, data_at)


def _packed(plan: Plan, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    for stack in plan.layout.stacks:
        values, scale = plan.packing.pack(_rows(stack, flat[stack.offset : stack.offset + stack.size]))
        yield stack.key, values.view(stack.shape)
        if scale is not None:
            yield stack.key + SCALE, scale


def _flat(plan: Plan, section: memoryview) -> Tensor:
    """The flat vector in fp32: the data section itself where it is stored as it is."""
    if plan.flat_at is None:
        return _unpacked(plan, {name: tensor.read(section) for name, tensor in plan.tensors.items()})
    return torch.frombuffer(section, dtype=torch.float32, count=plan.layout.num_params, offset=plan.flat_at)


def _unpacked(plan: Plan, tensors: Mapping[str, Tensor]) -> Tensor:
    """The flat vector in fp32."""
    flat = torch.empty(plan.layout.num_params)
    for stack in plan.layout.stacks:
        rows = _rows(stack, tensors[stack.key])
        flat[stack.offset : stack.offset + stack.size] = plan.packing.unpack(
            rows, tensors.get(stack.key + SCALE)
        ).flatten()
    return flat


def _rows(stack: Stack, values: Tensor) -> Tensor:
    return values.reshape(len(stack.entries), -1)


def _basis_tensors(adapter: Adapter) -> dict[str, Tensor]:
    key = adapter.layout.basis
    basis = adapter.basis() if key is not None and key.init == GIVEN else None
    return {} if basis is None else {BASIS_A: basis.A, BASIS_B: basis.B}


def _basis(plan: Plan, section: memoryview) -> Basis | None:
    if BASIS_A not in plan.tensors:
        return None
    basis = given_basis(*(plan.tensors[name].read(section).clone() for name in (BASIS_A, BASIS_B)))
    if basis.sha256 != plan.basis_sha256:
        raise FormatError(
            f"its basis has sha256 {basis.sha256[:12]}, its header says {plan.basis_sha256[:12]}: {AGAIN}"
        )
    return basis


def _check_finite(layout: Layout, flat: Tensor, advice: str) -> None:
    if not np.isfinite(flat.numpy()).all():
        bad = next(k for k, e in layout.entries.items() if not flat[e.offset : e.offset + e.size].isfinite().all())
        raise FormatError(f"{bad} holds NaN or infinity; {advice}")


def _header_text(view: memoryview) -> bytes:
    if len(view) < LENGTH_BYTES + 2:
        raise FormatError(f"{len(view)} bytes are too few for an adapter file: it was cut off; {AGAIN}")
    length = int.from_bytes(view[:LENGTH_BYTES], "little")
    if length > min(MAX_HEADER_BYTES, len(view) - LENGTH_BYTES) or length % LENGTH_BYTES:
        raise FormatError(
            f"it states a header of {length} bytes in a file of {len(view)} (polyvera writes multiples of "
            f"{LENGTH_BYTES} up to {MAX_HEADER_BYTES}): it was cut off, or is no adapter file; {AGAIN}"
        )
    return bytes(view[LENGTH_BYTES : LENGTH_BYTES + length])


def _lines(metadata: object, tensors: Mapping[str, Any]) -> tuple[str, str]:
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(
            f"it is a safetensors file of {len(tensors)} tensors ({min(tensors, default='none')!r} is one) without the "
            "header of an adapter: a plain model, or an adapter of PEFT, whose folder import_peft() reads"
        )
    lines = text.split("\n")
    if len(lines) != 2 or metadata != {KEY: text}:
        raise FormatError(f"its metadata is not the two lines of an adapter file: it is damaged; {AGAIN}")
    return lines[0], lines[1]


def _check_digest(view: memoryview, text: bytes, digest: str) -> None:
    """Raises FormatError unless the sha256 of all bytes, with the digest's own as zeros, is the digest."""
    found = digest.encode()
    if text.count(found) != 1:
        raise FormatError(f"its header does not hold the digest {digest[:12]} just once: it is no file of polyvera's")
    actual = _sha256(view, LENGTH_BYTES + text.index(found))
    if actual != digest:
        raise FormatError(
            f"its sha256 is {actual[:12]}, its header says {digest[:12]}: it was damaged or cut off; {AGAIN}"
        )


def _sha256(view: memoryview, digest_at: int) -> str:
    sha = hashlib.sha256(view[:digest_at])
    sha.update(ZEROS)
    sha.update(view[digest_at + len(ZEROS) :])
    return sha.hexdigest()


def _sealed(data: bytes) -> bytes:
    """The file with its digest in place of the zeros."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"the header would take {length} bytes, the most is {MAX_HEADER_BYTES}: adapt fewer kinds of layers"
        )
    at = data.index(BEFORE_DIGEST + ZEROS) + len(BEFORE_DIGEST)
    digest = _sha256(memoryview(data), at).encode()
    return data[:at] + digest + data[at + len(digest) :]
