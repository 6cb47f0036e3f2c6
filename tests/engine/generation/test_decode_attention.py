"""Single tokens attend to their own rows of the cache; the kernel computes what its naive twin does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.engine.generation.decode_attention import attend, attend_naive, visible

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONTEXT = 300


def causal(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def sliding(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key > query - 50)


def chunked(batch: int, head: int, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key // 64 == query // 64)


RULES = (causal, sliding, chunked)


def drawn(tokens: int, key_heads: int, groups: int, width: int, dtype: torch.dtype, v_width: int = 0) -> Any:
    """q, k, v, and a cache row and a position for each token; several tokens may read one row."""
    draw = torch.Generator().manual_seed(tokens + width)
    q = torch.randn(tokens, key_heads * groups, width, generator=draw)
    k = torch.randn(6, CONTEXT, key_heads, width, generator=draw)
    v = torch.randn(6, CONTEXT, key_heads, v_width or width, generator=draw)
    rows = torch.randint(6, (tokens,), generator=draw)
    positions = torch.randint(CONTEXT, (tokens,), generator=draw)
    positions[0] = 0
    return *(t.to(DEVICE, dtype) for t in (q, k, v)), rows.to(DEVICE), positions.to(DEVICE)


@pytest.mark.parametrize("sees", RULES)
def test_a_token_attends_to_the_keys_that_it_sees(sees: Any) -> None:
    q, k, v, rows, positions = drawn(9, 2, 3, 8, torch.float32)
    seen = visible(sees, positions, rows, CONTEXT)
    found = attend_naive(q, k, v, rows, seen.lo, seen.hi, 0.3)
    for i in range(9):
        mask = sees(0, 0, positions[i], torch.arange(CONTEXT, device=DEVICE))
        own = (t[rows[i]].repeat_interleave(3, 1).transpose(0, 1) for t in (k, v))
        expected = F.scaled_dot_product_attention(q[i][:, None], *own, attn_mask=mask[None], scale=0.3)
        assert torch.allclose(found[i], expected[:, 0], atol=1e-5)


def test_numbers_that_a_token_does_not_see_cannot_reach_it() -> None:
    q, k, v, rows, positions = drawn(5, 2, 2, 16, torch.float32)
    seen = visible(sliding, positions, rows, CONTEXT)
    for i in range(5):
        apart_k, apart_v = torch.full_like(k, torch.nan), torch.full_like(v, torch.inf)
        at = slice(int(seen.lo[i]), int(seen.hi[i]))
        apart_k[rows[i], at], apart_v[rows[i], at] = k[rows[i], at], v[rows[i], at]
        one = slice(i, i + 1)
        given = (rows[one], seen.lo[one], seen.hi[one], 0.3)
        found = attend_naive(q[one], apart_k, apart_v, *given)
        assert torch.equal(found, attend_naive(q[one], k, v, *given))


# (tokens, key heads, query heads of each, width): one split and many, tiles that are full and not.
SHAPES = [(2, 1, 4, 128), (2, 2, 7, 80), (3, 3, 1, 8), (1, 1, 24, 40)]
CASES = [
    *((sees, shape, torch.float32) for sees, shape in zip((*RULES, causal), SHAPES)),
    *((sliding, SHAPES[1], dtype) for dtype in (torch.bfloat16, torch.float16)),
    (chunked, (67, 2, 1, 16), torch.float32),
]


@pytest.mark.parametrize(("sees", "shape", "dtype"), CASES)
def test_the_kernel_computes_what_its_twin_does(kernel: Any, sees: Any, shape: Any, dtype: torch.dtype) -> None:
    q, k, v, rows, positions = drawn(*shape, dtype)
    seen = visible(sees, positions, rows, CONTEXT)
    given = (rows, seen.lo, seen.hi, 0.2)
    found = kernel.attend(q, k, v, *given)
    expected = attend_naive(q.float(), k.float(), v.float(), *given)
    assert found.dtype == dtype and found.shape == expected.shape
    assert torch.allclose(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_the_kernel_reads_queries_as_they_lie_and_values_of_another_width(kernel: Any) -> None:
    q, k, v, rows, positions = drawn(6, 2, 2, 32, torch.float32, v_width=24)
    seen = visible(causal, positions, rows, CONTEXT)
    given = (k, v, rows, seen.lo, seen.hi, 0.2)
    apart = q.transpose(0, 1).contiguous().transpose(0, 1)
    assert apart.stride() != q.stride()
    assert torch.allclose(kernel.attend(apart, *given), attend_naive(q, *given), atol=1e-5)


def test_the_kernel_lets_nothing_through_that_a_token_does_not_see(kernel: Any) -> None:
    q, k, v, rows, positions = drawn(1, 2, 2, 16, torch.float32)
    positions[0] = 77
    seen = visible(sliding, positions, rows, CONTEXT)
    given = (rows, seen.lo, seen.hi, 0.3)
    expected = attend_naive(q, k, v, *given)
    inside = torch.arange(CONTEXT, device=DEVICE)
    outside = (inside < seen.lo) | (inside >= seen.hi)
    k[:, outside], v[:, outside] = torch.nan, torch.inf
    assert torch.allclose(kernel.attend(q, k, v, *given), expected, atol=1e-5)


def test_few_programs_split_their_keys_and_many_do_not(kernel: Any) -> None:
    splits = [kernel.num_splits(n) for n in (1, 8, 32, 64, 132, 133, 512)]
    assert splits == sorted(splits, reverse=True) and splits[0] == kernel.MAX_SPLITS and splits[-1] == 1
    assert all(kernel.num_splits(n) * n <= kernel.FULL_PROGRAMS for n in range(1, 133))


def test_the_default_scale_is_that_of_the_width() -> None:
    q, k, v, rows, positions = drawn(3, 2, 2, 16, torch.float32)
    seen = visible(causal, positions, rows, CONTEXT)
    assert torch.allclose(attend(q, k, v, seen, None), attend_naive(q, k, v, rows, seen.lo, seen.hi, 0.25), atol=1e-5)


@pytest.mark.skipif(IS_INTERPRETED, reason="is the process apart")
def test_the_kernel_equals_its_twin_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.split()[0].count("s") == 1  # this test alone is skipped there


@pytest.fixture(scope="module")
def kernel() -> Any:
    if IS_INTERPRETED:
        import triton_interpreter  # noqa: F401
    elif not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or Triton's interpreter")
    from polyvera.engine.generation import decode_kernel

    return decode_kernel
