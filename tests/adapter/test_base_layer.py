"""A base layer answers the same questions whichever way round it keeps its weight."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from polyvera.adapter.base_layer import as_stored, bias_of, dense_weight, is_linear, is_quantized, plain_layer, widths
from polyvera.errors import LayoutError

IN, OUT = 3, 5
LAYERS = {
    "linear": lambda: nn.Linear(IN, OUT),
    "linear without bias": lambda: nn.Linear(IN, OUT, bias=False),
    "linear in fp64": lambda: nn.Linear(IN, OUT, dtype=torch.float64),
    "conv1d": lambda: Conv1D(OUT, IN),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    made = LAYERS[request.param]()
    if getattr(made, "bias", None) is not None:
        nn.init.normal_(made.bias)
    return made


def inputs(layer):
    return torch.randn(4, IN, dtype=layer.weight.dtype)


def test_a_subclass_with_the_same_product_is_linear():
    from transformers.models.falcon.modeling_falcon import FalconLinear

    layer, x = FalconLinear(4, 3), torch.randn(2, 4)
    assert is_linear(layer) and widths(layer) == (4, 3)
    torch.testing.assert_close(layer(x), torch.nn.Linear.forward(layer, x))


def test_the_weight_is_out_by_in(layer):
    x, bias = inputs(layer), bias_of(layer)
    assert is_linear(layer) and not is_quantized(layer) and widths(layer) == (IN, OUT)
    weight = dense_weight(layer)
    assert weight.shape == (OUT, IN) and not weight.requires_grad
    torch.testing.assert_close(x @ weight.T + (0 if bias is None else bias), layer(x))
    assert torch.equal(as_stored(layer, weight), layer.weight)


def test_a_plain_layer_of_another_weight_is_of_the_same_kind(layer):
    x, weight = inputs(layer), 2 * dense_weight(layer)
    made = plain_layer(layer, weight)
    assert type(made) is type(layer) and widths(made) == (IN, OUT)
    assert torch.equal(dense_weight(made), weight) and not made.weight.requires_grad
    bias = bias_of(layer)
    torch.testing.assert_close(made(x), x @ weight.T + (0 if bias is None else bias))
    if bias is not None:
        assert made.bias.data_ptr() != layer.bias.data_ptr(), "the base keeps its own"


@pytest.mark.parametrize("module", [nn.Embedding(4, 4), nn.LayerNorm(4), nn.Conv2d(1, 1, 1), nn.Identity()])
def test_other_modules_are_not_linear(module):
    assert not is_linear(module)


def test_a_weight_that_cannot_be_read_back_is_refused():
    layer = nn.Linear(IN, OUT)
    layer.weight = nn.Parameter(torch.zeros(OUT, IN, dtype=torch.int8), requires_grad=False)
    assert is_quantized(layer)
    with pytest.raises(LayoutError, match="Linear"):
        dense_weight(layer)
