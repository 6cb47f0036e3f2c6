"""The models that are measured: published shapes with random numbers, and a tokenizer of as many words."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
    "1b": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
NAMES = {"tiny": "tiny", "1b": "Llama-3.2-1B", "8b": "Llama-3-8B"}


def build(name: str, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A frozen model of that shape with random weights, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[name], bos_token_id=0, eos_token_id=1, pad_token_id=1, dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def twin(model: nn.Module) -> nn.Module:
    """The same model in modules of its own around the same weights."""
    return copy.deepcopy(model, {id(t): t for t in chain(model.parameters(), model.buffers())})


def make_tokenizer(model: LlamaForCausalLM) -> PreTrainedTokenizerFast:
    """As many words between spaces as the model has tokens: w2, w3, ..."""
    words = ["<s>", "</s>", *(f"w{i}" for i in range(2, model.config.vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def num_matrix_params(model: LlamaForCausalLM) -> int:
    """Numbers of the weight matrices that every token is multiplied with, the output layer's included."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
