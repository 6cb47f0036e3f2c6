"""Tiny models of many families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny_serve import make_tokenizer
from transformers import AutoModelForCausalLM, PretrainedConfig

TOKENIZER = make_tokenizer()
LIKE_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.25,
}
SLIDING = {**LIKE_LLAMA, "head_dim": 8, "sliding_window": 8}
LIKE_GPT2 = {"n_embd": 32, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}
SERVED: dict[str, dict[str, Any]] = {
    "MistralConfig": SLIDING,
    "Gemma3TextConfig": SLIDING,
    "Starcoder2Config": SLIDING,
    "Gemma2Config": {**SLIDING, "attn_logit_softcapping": 3.0},
    "GptOssConfig": {**SLIDING, "num_local_experts": 4},
    "Qwen3Config": {**LIKE_LLAMA, "head_dim": 8},
    "Phi3Config": LIKE_LLAMA,
    "GPTNeoXConfig": {k: v for k, v in LIKE_LLAMA.items() if k != "num_key_value_heads"},
    "GPT2Config": {**LIKE_GPT2, "n_positions": 160},
    "MixtralConfig": {**LIKE_LLAMA, "num_local_experts": 4},
    "OPTConfig": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "init_std": 0.25,
    },
}


def built(name: str, given: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config: PretrainedConfig = getattr(transformers, name)(vocab_size=len(TOKENIZER), **ends, **given)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # zero biases would hide mistakes
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def state(model: torch.nn.Module) -> Callable[[], None]:
    """Asserts, when it is called, that a model is as it is now, bit for bit and object for object."""
    modules, values = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in modules.items()}
    modes = {name: module.training for name, module in modules.items()}
    attention, wants = model.config._attn_implementation, [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(torch.arange(3, 20)[None]).logits

    def same() -> None:
        now = dict(model.named_modules())
        assert list(now) == list(modules) and all(now[name] is module for name, module in modules.items())
        assert {name: set(vars(module)) for name, module in now.items()} == attributes
        assert {name: module.training for name, module in now.items()} == modes
        assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in now.values())
        assert model.config._attn_implementation == attention
        assert [p.requires_grad for p in model.parameters()] == wants
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model).eval()(torch.arange(3, 20)[None]).logits, logits)

    return same
