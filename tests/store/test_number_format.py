"""Numbers leave in the narrowest dtype that keeps them."""

import pytest
import torch

from polyvera.errors import SpecError
from polyvera.store.number_format import dtype_named, exact_dtype, written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_came_in_halves_leaves_in_halves(dtype):
    tensors = [torch.randn(40).to(dtype).float(), torch.randn(2, 20).to(dtype).float()]
    assert exact_dtype(tensors) == dtype
    assert exact_dtype([*tensors, torch.randn(9)]) == torch.float32


def test_a_number_that_overflows_a_half_is_not_exact():
    assert exact_dtype([torch.tensor([2.0**100, 1 + 2.0**-9])]) == torch.float32


def test_written_tensors_are_copies():
    tensor = torch.randn(3, 4)
    copy = written({"x": tensor.T}, torch.float32)["x"]
    assert copy.is_contiguous() and torch.equal(copy, tensor.T) and copy.data_ptr() != tensor.data_ptr()


def test_a_dtype_is_known_by_name():
    assert dtype_named("float16") == torch.float16
    with pytest.raises(SpecError, match="did you mean 'float16'"):
        dtype_named("float15")
