"""Which modules are fused experts, and what a stack of theirs answers."""

import pytest
import torch
from moe_models import MODELS, SIZES, make_moe
from torch import nn

from polyvera.adapter.base_layer import as_stored, bias_of, dense_weight, is_quantized, layer_kind, plain_layer, widths
from polyvera.adapter.expert_stack import form_of, stacks_of
from polyvera.adapter.targets import base_layers, linear_layers

WIDE, INNER, EXPERTS = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_local_experts"]


@pytest.mark.parametrize("name", MODELS)
def test_each_projection_of_the_experts_is_a_base_layer(name):
    model = make_moe(name)
    [experts, *_] = [module for module in model.modules() if form_of(module)]
    shapes = {key: widths(stack) for key, stack in stacks_of(experts).items()}
    assert shapes == {"gate_up_proj": (WIDE, 2 * INNER, EXPERTS), "down_proj": (INNER, WIDE, EXPERTS)}
    stacks = {n: layer for n, layer in base_layers(model).items() if n not in linear_layers(model)}
    assert list(stacks) == [f"model.layers.{i}.mlp.experts.{key}" for i in range(2) for key in shapes]
    for site, stack in stacks.items():
        assert layer_kind(stack).weight_name(site) == site and stack.weight is model.get_parameter(site)
        dense = dense_weight(stack)
        assert dense.shape == (EXPERTS, *widths(stack)[1::-1]) and not is_quantized(stack) and bias_of(stack) is None
        assert torch.equal(as_stored(stack, dense), stack.weight)
        assert torch.equal(plain_layer(stack, 2 * dense), 2 * stack.weight)


def test_other_modules_are_no_experts():
    assert stacks_of(nn.Linear(3, 4)) == {} and not any(form_of(m) for m in nn.Sequential(nn.Linear(2, 2)).modules())
