"""A file read straight into a row holds what decode() gives, or is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_adapters import drawn, with_given_basis
from forged_files import forged

from polyvera.adapter.inject import add_bank, extract, inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FormatError
from polyvera.store.file.codec import Header, decode, encode
from polyvera.store.file.read_into import fill
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

FIRST, *_ = METHODS
SHARED = next(name for name, row in METHODS.items() if row.shares_basis)


def into(path: Path, data: bytes, num: int, digest: str = ""):
    """(header, row)"""
    path.write_bytes(data)
    row, descriptor = np.full(num, 7.0, np.float32), os.open(path, os.O_RDONLY)
    seen: list[Header] = []
    try:
        header = fill(row, descriptor, digest, lambda header: seen.append(header) or True)
        assert ([] if header is None else [header]) == seen and (seen or not row.any())
        return header, row
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_a_row_is_what_decode_gives(tmp_path, method, dtype):
    adapter = drawn(method)
    data = encode(adapter, dtype)
    header, row = into(tmp_path / "a", data, adapter.num_params)
    assert header is not None and header.index.stored.name == dtype
    assert torch.equal(torch.from_numpy(row), decode(data).flat)
    assert header.index.layout.key() == adapter.layout.key() and header.own.base == adapter.base


def test_other_bytes_beside_the_numbers_are_left_to_the_long_way(tmp_path):
    adapter = with_given_basis(drawn(SHARED))
    assert into(tmp_path / "a", encode(adapter), adapter.num_params)[0] is None


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_no_damage_passes(tmp_path, dtype):
    adapter = drawn(SHARED)
    data = encode(adapter, dtype)
    for at in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        assert into(tmp_path / "a", bytes(damaged), adapter.num_params)[0] is None, at
    for cut in (0, 1, 7, 8, 9, 100, len(data) - 4, len(data) - 1):
        assert into(tmp_path / "a", data[:cut], adapter.num_params)[0] is None, cut
    assert into(tmp_path / "a", data + b"\0", adapter.num_params)[0] is None
    assert into(tmp_path / "a", data, adapter.num_params - 1)[0] is None
    assert into(tmp_path / "a", data, adapter.num_params + 1)[0] is None
    assert into(tmp_path / "a", data, adapter.num_params, digest="0" * 64)[0] is None
    assert into(tmp_path / "a", data, adapter.num_params)[0] is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_without_end_do_not_pass(tmp_path, bad):
    adapter = drawn(SHARED)
    value = np.array([bad], np.float32).tobytes()
    data = forged(encode(adapter), section=lambda section: section[:-4] + value)
    with pytest.raises(FormatError, match="NaN"):
        decode(data)
    assert into(tmp_path / "a", data, adapter.num_params)[0] is None


def test_load_into_leaves_a_slot_as_it_was_where_a_file_is_damaged(tmp_path, small_llama, scramble):
    registry, spec = Registry(tmp_path), AdapterSpec(method=SHARED, rank=4)
    source = inject(small_llama, spec, num_slots=3)
    scramble(source)
    adapters = [extract(source, slot, small_llama) for slot in source.slots]
    for adapter in adapters:
        registry.put("a", adapter)
    bank = add_bank(small_llama, adapters[0].layout, 3, adapters[0].basis())
    registry.load_into(bank, ["a@1"])
    data = bytearray(registry.files.read("adapters/a/2.safetensors"))
    data[-5] ^= 4
    registry.files.replace("adapters/a/2.safetensors", bytes(data))
    for slot in bank.slots[:2]:  # one that is full, one that is empty
        with pytest.raises(FormatError, match="damaged"):
            registry.load_into(bank, ["a@2"], slots=[slot])
    assert bank.occupied == {0} and torch.equal(bank.take(bank.slots[0]), adapters[0].flat)
    assert not bank.flat[1:].any()
    registry.load_into(bank, ["a@3"], slots=[bank.slots[1]])
    assert torch.equal(bank.take(bank.slots[1]), adapters[2].flat)


def test_a_folder_in_a_files_place_is_told_as_the_long_way_tells_it(tmp_path, small_llama):
    registry, spec = Registry(tmp_path), AdapterSpec(method=SHARED, rank=4)
    source = inject(small_llama, spec)
    adapter = extract(source, source.first)
    (tmp_path / "adapters/a/1.safetensors").mkdir(parents=True)
    bank = add_bank(small_llama, adapter.layout, 1, adapter.basis())
    with pytest.raises(FormatError, match="a folder, not a regular file"):
        registry.load_into(bank, [AdapterRef("a", 1, "", 0)])
