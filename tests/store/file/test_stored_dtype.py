"""stored_dtype: what each dtype keeps of the numbers, and the error that it states."""

from __future__ import annotations

import pytest
import torch

from polyvera.errors import FormatError
from polyvera.store.file.stored_dtype import STORED_DTYPES, error_made, stored_dtype_named

ROWS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [100.0], [0.0]])
BOUNDS = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127}  # of the largest value of an entry


@pytest.mark.parametrize("name", STORED_DTYPES)
def test_numbers_come_back_within_their_bound(name: str) -> None:
    kept = stored_dtype_named(name)
    values, scale = kept.pack(ROWS)
    assert values.dtype == kept.dtype and (scale is not None) == kept.has_scale
    back = kept.unpack(values, scale)
    assert back.dtype == torch.float32
    assert ((back - ROWS).abs() <= BOUNDS[name] * 1.0001 * ROWS.abs().amax(1, keepdim=True)).all()
    assert torch.equal(back, ROWS) == kept.is_exact


def test_the_error_is_the_largest_and_the_relative_one() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert error_made(exact, exact) == {"max_abs": 0.0, "relative_l2": 0.0}
    assert error_made(exact, torch.tensor([3.0, 4.5])) == {"max_abs": 0.5, "relative_l2": 0.1}
    assert error_made(torch.zeros(2), torch.zeros(2))["relative_l2"] == 0.0


def test_an_unknown_dtype_names_the_nearest() -> None:
    with pytest.raises(FormatError, match="'int4' must be one of: float32, bfloat16, int8; did you mean 'int8'"):
        stored_dtype_named("int4")
