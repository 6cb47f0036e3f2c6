"""Layers whose weight is read without a call: known by the code of the class that owns them."""

import pytest
import torch
import transformers
from torch import nn

from polyvera.adapter.layer_use import gets_chosen_tokens, gets_tokens_first, read_only
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites, linear_layers
from polyvera.errors import TargetError


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.called, self.read, self.asked, self.both, self.handed, self.fast = (nn.Linear(4, 4) for _ in range(6))

    def forward(self, x, run=torch.utils.checkpoint.checkpoint):
        x = self.called(x).to(self.asked.weight.dtype)
        x = self.asked(x) @ self.both.weight + self.both(x)
        x = run(self.handed, x) + self.handed.weight
        return torch.nn.functional.linear(x, self.read.weight) if x.is_cuda else self.fast(x) + self._sum()

    def _sum(self):
        return sum(self.fast.weight)


class Inheritor(Owner):
    def forward(self, x):
        return self.read(x)


def test_what_is_read_and_never_called_is_known():
    assert read_only(Owner) == {"read", "both"}
    assert read_only(Inheritor) == {"fast"}
    assert read_only(nn.MultiheadAttention) == {"out_proj"}
    assert read_only(nn.Linear) == set()


def test_a_class_without_source_has_none():
    assert read_only(type("Made", (nn.Module,), {})) == set()


@pytest.fixture
def mamba():
    config = transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config)


def test_such_a_layer_is_left_out_and_refused_by_name(mamba):
    assert not any(name.endswith("dt_proj") for name in linear_layers(mamba))
    assert find_sites(mamba, AdapterSpec(targets="all-linear"))
    with pytest.raises(TargetError, match="dt_proj is a Linear, whose weight MambaMixer reads without calling it"):
        find_sites(mamba, AdapterSpec(targets=("dt_proj",)))


@pytest.mark.parametrize(
    ("name", "gets_them"),
    [
        ("encoder.block.1.layer.1.mlp.experts.expert_0.wi", True),
        ("model.layers.0.block_sparse_moe.experts.12.w1", True),
        ("model.layers.0.mlp.experts.gate_up_proj", False),
        ("model.layers.0.mlp.shared_experts.up_proj", False),
        ("model.layers.0.mlp.shared_expert.up_proj", False),
    ],
)
def test_a_listed_expert_gets_the_tokens_that_a_router_chose(name, gets_them):
    assert gets_chosen_tokens(name) == gets_them


def test_what_a_class_does_nothing_with_is_left_out_and_refused_by_name():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(vision_config={**sizes, "image_size": 8, "patch_size": 4})
    with torch.device("meta"):
        model = transformers.SiglipForImageClassification(config)
    assert "vision_model.head.mlp.fc1" not in find_sites(model, AdapterSpec(targets="all-linear"))
    assert "head.mlp.fc1" in linear_layers(model.vision_model)
    with pytest.raises(TargetError, match="or does nothing with"):
        find_sites(model, AdapterSpec(targets="head.mlp.fc1"))


def test_layers_of_a_class_that_turns_its_batch_get_tokens_first():
    sizes = {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    with torch.device("meta"):
        model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes))
    assert gets_tokens_first(model, "transformer.layer.0.ff.layer_1") and not gets_tokens_first(model, "lm_loss")
