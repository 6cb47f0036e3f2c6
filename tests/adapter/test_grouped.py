"""The grouped product against its naive twin."""

import torch

from polyvera.adapter.grouped import grouped_linear, grouped_linear_naive


def test_outputs_and_gradients_are_the_naive_ones():
    draw = torch.Generator().manual_seed(0)
    index = torch.tensor([2, 0, -1, 2, 4, 0, 0, -1])
    weights = torch.randn(8, 5, generator=draw)
    found = []
    for product in (grouped_linear, grouped_linear_naive):
        draw.manual_seed(1)
        x, stack = (torch.randn(*shape, generator=draw, requires_grad=True) for shape in ((8, 3), (6, 5, 3)))
        y = product(x, stack, index)
        (y * weights).sum().backward()
        found.append((y, x.grad, stack.grad))
    for own, naive in zip(*found, strict=True):
        torch.testing.assert_close(own, naive)
    y, _, of_stack = found[0]
    assert not y[index < 0].any() and not of_stack[[1, 3, 5]].any() and of_stack[[0, 2, 4]].abs().amin((1, 2)).all()


def test_no_rows_are_no_rows():
    stack, none = torch.ones(2, 5, 3), torch.zeros(0, dtype=torch.long)
    for product in (grouped_linear, grouped_linear_naive):
        assert product(torch.ones(0, 3), stack, none).shape == (0, 5)
