"""The sides of layers are what autograd says, and their leading directions those of the planted ones."""

import pytest
import torch
from tiny_models import make_model
from torch import nn

from polyvera.adapter.targets import base_layers
from polyvera.bases.layer_sides import LayerSides, check_rank, gathering, leading, leading_pairs
from polyvera.errors import DataError


def empty(wide: int, tall: int) -> LayerSides:
    return LayerSides(*(torch.zeros(shape).double() for shape in ((wide, wide), (wide,), (tall, tall), (tall, wide))))


def test_the_gradient_of_the_weight_is_autograds() -> None:
    model, name = make_model(), "model.layers.1.self_attn.v_proj"
    layer = base_layers(model)[name]
    ids = torch.arange(12).view(2, 6) + 5
    with gathering(model, {name: (32, 16)}) as found:
        model.eval()
        model(input_ids=ids, labels=ids).loss.backward()
        assert found[name].num == 0  # nothing trains
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
    assert isinstance(layer, nn.Linear) and layer.weight.grad is not None
    assert torch.allclose(found[name].weight, layer.weight.grad.double(), atol=1e-6)
    assert 0 < found[name].num <= 12 and not layer._forward_hooks
    assert float(found[name].covariance.trace()) == pytest.approx(1) == float(found[name].wanted.trace())


def test_leading_directions_are_those_that_were_planted() -> None:
    draw = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(10, 2, generator=draw))[0].T
    x = torch.randn(500, 2, generator=draw) @ planted + 3.0  # PCA does not see the mean
    sides = empty(10, 4)
    sides.add(x, torch.ones(500, 4))
    found = leading([sides.covariance], 2, "inputs").float()
    assert torch.allclose(found.T @ found, planted.T @ planted, atol=1e-4)
    with pytest.raises(DataError, match="rank=5, but inputs span 2 directions"):
        leading([sides.covariance], 5, "inputs")


def test_pairs_are_pooled_over_layers_by_their_share() -> None:
    one, other = empty(3, 2), empty(5, 4)
    one.weight[1, 2] = 100.0  # all of its gradient
    other.weight[0, 0], other.weight[3, 4] = 2.0, 1.0
    right, left = leading_pairs([one, other], 3)
    assert right.shape == (3, 5) and left.shape == (3, 4)
    assert [int(row.abs().argmax()) for row in right] == [2, 0, 4]
    assert [int(row.abs().argmax()) for row in left] == [1, 0, 3]


def test_a_rank_is_checked() -> None:
    check_rank(3, 3, "x")
    with pytest.raises(DataError, match="take a lower rank"):
        check_rank(4, 3, "x")
