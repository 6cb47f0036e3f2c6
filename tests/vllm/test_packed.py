"""A packed product is the plain one, before and after its weight holds other numbers."""

import pytest
import torch

pytest.importorskip("vllm._custom_ops", reason="vLLM has an environment of its own: scripts/test-vllm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 200])
def test_a_product_is_the_plain_one(dtype, num_rows):
    from polyvera.vllm.packed import multiply

    torch.manual_seed(0)
    weight, x = torch.randn(64, 96).to(dtype), torch.randn(num_rows, 96).to(dtype)
    product = multiply(weight)
    for _ in range(2):
        torch.testing.assert_close(product(x).float(), x.float() @ weight.float().t(), atol=0.2, rtol=0.02)
        weight.copy_(torch.randn(64, 96))
        product.refill()


def test_what_cannot_be_packed_is_multiplied_plainly():
    from polyvera.vllm.packed import multiply
    from polyvera.vllm.pair import Plain

    weight = torch.randn(4, 3, dtype=torch.float64)
    assert isinstance(multiply(weight), Plain)
