"""stored_dtype: what each dtype keeps of the numbers, and the error that it states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from polyvera.errors import FormatError
from polyvera.store.file.stored_dtype import ARRAYS, SHARES, STORED_DTYPES, error_made, stored_dtype_named

ROWS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [100.0], [0.0]])
BOUNDS = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127}  # of the largest value of an entry
PACKED = [name for name, row in STORED_DTYPES.items() if row.bits < 8]
RELATIVE = {"int4": 0.13, "int3": 0.26}  # error of normal numbers


def restored(name: str, rows: torch.Tensor) -> torch.Tensor:
    kept, out = stored_dtype_named(name), torch.full(rows.shape, 9.0)
    values, scale = kept.pack(rows)
    kept.unpack(as_array(values), None if scale is None else as_array(scale), out.numpy())
    return out


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """What numpy reads in the tensor's bytes."""
    return tensor.view(torch.uint8).numpy().view(ARRAYS[tensor.dtype])


@pytest.mark.parametrize("name", STORED_DTYPES)
def test_numbers_come_back_in_the_shape_and_dtypes_stated(name: str) -> None:
    kept = stored_dtype_named(name)
    values, scale = kept.pack(ROWS)
    assert values.dtype == kept.dtype and values.shape == (3, *kept.shape((40,)))
    assert (None if scale is None else (scale.dtype, *scale.shape)) == (kept.scale and (kept.scale, 3))
    assert torch.equal(restored(name, ROWS), ROWS) == kept.is_exact


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_come_back_within_their_bound(name: str) -> None:
    error = (restored(name, ROWS) - ROWS).abs()
    assert (error <= BOUNDS[name] * 1.0001 * ROWS.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("name", PACKED)
def test_packed_numbers_have_the_least_error_of_their_scales(name: str) -> None:
    back = restored(name, ROWS)
    assert 0.5 * RELATIVE[name] < float((back - ROWS)[0].norm() / ROWS[0].norm()) < RELATIVE[name]
    assert not back[2].any()
    most = 2 ** (stored_dtype_named(name).bits - 1) - 1
    for share in SHARES:
        scale = (share * ROWS[:2].abs().amax(1) / most).bfloat16().float()[:, None]
        other = (ROWS[:2] / scale).round().clamp(-most, most) * scale
        assert ((back[:2] - ROWS[:2]).norm(dim=1) <= (other - ROWS[:2]).norm(dim=1) * 1.0001).all()


@pytest.mark.parametrize("name", STORED_DTYPES)
def test_what_was_rounded_once_stays_as_it_is(name: str) -> None:
    once = restored(name, ROWS)
    assert torch.allclose(restored(name, once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e30, 3e37])
def test_packed_numbers_may_be_of_any_size(name: str, size: float) -> None:
    assert torch.allclose(restored(name, ROWS * (size / 100)), restored(name, ROWS) * (size / 100), rtol=0.02, atol=0)


def test_the_error_is_the_largest_and_the_relative_one() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert error_made(exact, exact) == {"max_abs": 0.0, "relative_l2": 0.0}
    assert error_made(exact, torch.tensor([3.0, 4.5])) == {"max_abs": 0.5, "relative_l2": 0.1}
    assert error_made(torch.zeros(2), torch.zeros(2))["relative_l2"] == 0.0


def test_an_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(
        FormatError, match="'int5' must be one of: float32, bfloat16, int8, int4, int3; did you mean 'int"
    ):
        stored_dtype_named("int5")
