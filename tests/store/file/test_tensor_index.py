"""The first line of a header decides every tensor of a file: its place, without gaps, in the format's order."""

from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
from drawn_adapters import drawn, with_given_basis

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FormatError
from polyvera.store.file.codec import encode, read_header, unpack
from polyvera.store.file.header import first_line
from polyvera.store.file.stored_dtype import CODES, SCALE, STORED_DTYPES
from polyvera.store.file.tensor_index import BASIS_A, BASIS_B, check_directory, index_of

SHARED = next(name for name, row in METHODS.items() if row.shares_basis)
HEAD = {"classifier.weight": (3, 8), "classifier.bias": (3,)}
every = pytest.mark.parametrize("method", METHODS)
each_dtype = pytest.mark.parametrize("dtype", STORED_DTYPES)


@every
@each_dtype
def test_tensors_lie_side_by_side_by_dtype_and_name(method, dtype):
    adapter = drawn(method, head=HEAD)
    index = index_of(first_line(adapter, dtype))
    places = list(index.tensors.values())
    assert places[0].begin == 0 and all(one.end == other.begin for one, other in pairwise(places))
    assert index.data_bytes == places[-1].end
    assert all(t.end - t.begin == prod(t.shape) * t.dtype.itemsize for t in places)
    codes = list(CODES)
    keys = [(codes.index(t.dtype), name) for name, t in index.tensors.items()]
    assert keys == sorted(keys)
    stored = {name for name in index.tensors if not name.endswith(SCALE)}
    assert stored == {stack.key for stack in adapter.layout.stacks}
    assert (index.spec, index.layout.key()) == (adapter.spec, adapter.layout.key())


@each_dtype
def test_a_given_basis_is_two_more_tensors(dtype):
    adapter = with_given_basis(drawn(SHARED))
    index, key = index_of(first_line(adapter, dtype)), adapter.layout.basis
    assert index.tensors[BASIS_A].shape == (key.rank, key.in_max)
    assert index.tensors[BASIS_B].shape == (key.out_max, key.rank)
    assert index.basis_sha256 == adapter.basis_sha256


@every
def test_the_flat_vector_is_found_where_it_lies_whole(method):
    line = first_line(drawn(method), "float32")
    index = index_of(line)
    assert index.flat_at == 0 and index_of(line) is index
    assert index_of(first_line(drawn(method), "int8")).flat_at is None


@pytest.mark.parametrize("dtype", [name for name, row in STORED_DTYPES.items() if row.bits < 8])
@pytest.mark.parametrize("width", [16, 15])
def test_stacks_that_lie_side_by_side_are_unpacked_as_one(dtype, width):
    spec = AdapterSpec(SHARED, rank=8)
    layout = layout_of(spec, {f"layers.{i}.{name}": (24, width) for i in range(3) for name in ("q", "v")})
    flat = torch.randn(layout.num_params, generator=torch.Generator().manual_seed(0))
    file = encode(Adapter(spec, layout, flat), dtype)
    header = read_header(file)
    section = memoryview(file)[header.data_at :]
    naive, fast = (np.full(layout.num_params, 5.0, np.float32) for _ in range(2))
    for stack in header.index.packed_stacks:
        stack.unpack(header.index.stored, section, naive)
    unpack(header.index, section, fast)
    assert (header.index.joined_stacks is None) == (width == 15) and np.array_equal(naive, fast)


def test_a_tensor_is_a_view_of_its_bytes():
    index = index_of(first_line(drawn(SHARED), "float32"))
    section = torch.arange(index.data_bytes // 4, dtype=torch.float32)
    for tensor in index.tensors.values():
        found = tensor.read(memoryview(section.numpy()).cast("B"))
        assert torch.equal(found.flatten(), section[tensor.begin // 4 : tensor.end // 4])
        assert found.shape == tensor.shape and found.data_ptr() == section.data_ptr() + tensor.begin


@pytest.mark.parametrize("change", ["missing", "moved", "more"])
def test_another_directory_is_refused_by_name(change):
    index = index_of(first_line(drawn(SHARED), "float32"))
    check_directory(index.directory, index)
    given = dict(index.directory)
    name = min(given)
    if change == "missing":
        del given[name]
    elif change == "moved":
        given[name] = given[name] | {"data_offsets": [4, 8]}
    else:
        name = "a"
        given[name] = given[max(given)]
    with pytest.raises(FormatError, match=repr(name).replace("*", r"\*")):
        check_directory(given, index)
