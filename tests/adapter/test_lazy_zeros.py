"""Zeros take memory as they are written, and only there."""

from __future__ import annotations

import mmap

import psutil
import pytest
import torch

from polyvera.adapter.lazy_zeros import zeros

CPU, HUGE = torch.device("cpu"), 2 << 20
each_kind = pytest.mark.parametrize("sparse", [False, True], ids=["plain", "sparse"])


@each_kind
@pytest.mark.parametrize("shape", [(3, 5, 7), (0, 4), (1000, 1000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_are_torchs_zeros_and_may_be_written(shape: tuple[int, ...], dtype: torch.dtype, sparse: bool) -> None:
    made = zeros(shape, device=CPU, dtype=dtype, sparse=sparse)
    assert made.dtype == dtype
    assert torch.equal(made, torch.zeros(shape, dtype=dtype))
    assert torch.equal(made.add_(1), torch.ones(shape, dtype=dtype))


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="huge pages are Linux's")
def test_sparse_zeros_take_small_pages_where_they_are_written() -> None:
    before = psutil.Process().memory_info().rss
    made = zeros((256, HUGE), device=CPU, dtype=torch.uint8, sparse=True)
    made[:, 0] = 1
    assert psutil.Process().memory_info().rss - before < 16 << 20, "256 places of 4 KiB were written"
    assert int(made.sum()) == 256
