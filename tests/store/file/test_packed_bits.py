"""packed_bits: steps come back as they were, the fast way is the slow one, and what no writer makes is refused."""

from __future__ import annotations

import numpy as np
import pytest

from polyvera.errors import FormatError
from polyvera.store.file.packed_bits import largest_step, pack_steps, packed_size, unpack_naive, unpack_steps

BITS = (3, 4)
each_bits = pytest.mark.parametrize("bits", BITS)


def steps(bits: int, rows: int, num: int) -> np.ndarray:
    most = largest_step(bits)
    return np.random.default_rng(num).integers(-most, most + 1, (rows, num)).astype(np.int8)


@each_bits
@pytest.mark.parametrize("num", [1, 2, 3, 7, 8, 9, 16, 24, 576])
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_come_back_both_ways(bits: int, num: int, rows: int) -> None:
    given = steps(bits, rows, num)
    packed = pack_steps(given, bits)
    assert packed.shape == (rows, packed_size(num, bits)) and packed.dtype == np.uint8
    for way in (unpack_steps, unpack_naive):
        out = np.full(given.shape, 9.0, np.float32)
        way(packed, bits, out)
        assert (out == given).all()


def test_the_lowest_bits_come_first() -> None:
    assert pack_steps(np.array([[1, -1, 7]], np.int8), 4).tolist() == [[0xF1, 0x07]]
    assert pack_steps(np.array([[1, -1, 3, -3]], np.int8), 3).tolist() == [[0b11111001, 0b1010]]


@each_bits
@pytest.mark.parametrize("num", [5, 8])
def test_the_lowest_step_reads_as_nan(bits: int, num: int) -> None:
    given = np.zeros((1, num), np.int8)
    given[0, -1] = -largest_step(bits) - 1
    out = np.zeros((1, num), np.float32)
    unpack_steps(pack_steps(given, bits), bits, out)
    assert np.isnan(out[0, -1]) and not out[0, :-1].any()


@each_bits
def test_bits_beyond_the_numbers_are_refused(bits: int) -> None:
    packed = pack_steps(steps(bits, 2, 5), bits)
    packed[1, -1] |= 0x80
    with pytest.raises(FormatError, match="bits beyond its numbers"):
        unpack_steps(packed, bits, np.zeros((2, 5), np.float32))


@each_bits
def test_a_row_may_begin_anywhere_in_memory(bits: int) -> None:
    given = steps(bits, 2, 48)
    for begin in range(4):
        memory = np.zeros(begin + given.size, np.float32)
        unpack_steps(pack_steps(given, bits), bits, memory[begin:].reshape(given.shape))
        assert (memory[begin:].reshape(given.shape) == given).all() and not memory[:begin].any()
