"""Tiny mixtures of experts: matrices as (out, in), as (in, out) with biases and a gate of their own, and all tokens."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
)

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8, rope_parameters={"rope_type": "default"})),
}
# Whose factors PEFT keeps the other way round.
ALL_MODELS = MODELS | {
    "llama4": lambda: Llama4ForCausalLM(Llama4TextConfig(**SIZES, intermediate_size_mlp=24, head_dim=8)),
}


def make_moe(name: str) -> nn.Module:
    """With weights and biases that are large enough for mistakes to show."""
    torch.manual_seed(0)
    model = ALL_MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model
