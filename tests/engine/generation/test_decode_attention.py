"""Single tokens attend to their own rows of the cache, and to nothing that they do not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_inputs import CONTEXT, DEVICE, RULES, causal, drawn, sliding
from torch.nn import functional as F

from polyvera.engine.generation.decode_attention import attend, attend_naive, visible


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


def test_the_default_scale_is_that_of_the_width() -> None:
    q, k, v, rows, positions = drawn(3, 2, 2, 16, torch.float32)
    seen = visible(causal, positions, rows, CONTEXT)
    assert torch.allclose(attend(q, k, v, seen, None), attend_naive(q, k, v, rows, seen.lo, seen.hi, 0.25), atol=1e-5)
