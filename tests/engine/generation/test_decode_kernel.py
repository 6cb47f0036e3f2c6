"""The kernel of decode attention computes what its naive twin does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from decode_inputs import CONTEXT, DEVICE, RULES, causal, chunked, drawn, sliding

from polyvera.engine.generation.decode_attention import attend_naive, visible

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
