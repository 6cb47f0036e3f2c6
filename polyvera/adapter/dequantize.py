"""dequantized: a model with plain layers in place of quantized ones, which is saved and loaded without a quantizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from polyvera.adapter.base_layer import dense_weight, is_linear, is_quantized, plain_layer

# What transformers keeps on a model, and in its configuration, of how it was quantized.
MARKS = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "_weight_conversions")
CONFIGS = ("quantization_config", "_pre_quantization_dtype")


def dequantized(model: nn.Module) -> nn.Module:
    """Every quantized layer of a bare model in place as a plain one, in the dtype of its other weights."""
    dtype = plain_dtype(model)
    for name, module in list(model.named_modules()):
        if is_linear(module) and is_quantized(module):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, plain_layer(module, dense_weight(module).to(dtype)))
    _forget(model)
    return model


def quantized_layers(model: nn.Module) -> list[str]:
    """The names of a model's quantized layers, adapted or not."""
    found = (name for name, module in model.named_modules() if is_linear(module) and is_quantized(module))
    return [name.removesuffix(".base") for name in found]


def plain_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the weights that quantizers leave alone, fp32 where there are none."""
    quantized = {id(m.weight) for m in model.modules() if is_linear(m) and is_quantized(m)}
    plain = (p.dtype for p in model.parameters() if p.is_floating_point() and id(p) not in quantized)
    return next(plain, torch.float32)


def _forget(model: nn.Module) -> None:
    """Ends what a quantizer said of the model."""
    whole: Any = model
    for mark in MARKS:
        whole.__dict__.pop(mark, None)
    if "is_quantized" in whole.__dict__:
        whole.is_quantized = False
    for name in CONFIGS:
        getattr(getattr(model, "config", None), "__dict__", {}).pop(name, None)
