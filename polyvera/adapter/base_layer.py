"""What is asked of a frozen base layer besides base(x): its widths, its weight as (out, in), its bias.

A base layer is a module, or a stack of experts, whose weight is (experts, out, in).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyvera.adapter.expert_stack import ExpertStack
from polyvera.adapter.layout import Widths
from polyvera.errors import LayoutError

BaseLayer = nn.Module | ExpertStack
# Subclasses of nn.Linear whose forward of their own is the same product.
SAME_PRODUCT = ("FalconLinear",)
# Packages whose subclasses of nn.Linear multiply with a quantized weight and do nothing else.
QUANTIZED = ("bitsandbytes", "torchao", "compressed_tensors", "gptqmodel", "auto_gptq", "awq", "optimum", "hqq")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one weight (in) -> (out): nn.Linear, a quantized subclass, transformers' Conv1D.

    A subclass with a forward of its own, such as a router that returns a tuple, is not.
    """
    kind = type(module)
    if not isinstance(module, nn.Linear):
        return kind.__name__ == "Conv1D"
    is_plain = kind.forward is nn.Linear.forward or kind.__name__ in SAME_PRODUCT
    return is_plain or kind.__module__.partition(".")[0] in QUANTIZED


def widths(layer: BaseLayer) -> Widths:
    """(in_features, out_features), and the number of experts of a stack."""
    module: Any = layer
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    *experts, tall, wide = dense_weight(layer).shape
    return wide, tall, *experts


def is_quantized(layer: BaseLayer) -> bool:
    """Whether the weight is not a plain floating-point tensor."""
    weight: Any = layer.weight
    return type(weight) not in (nn.Parameter, Tensor) or not weight.dtype.is_floating_point


def dense_weight(layer: BaseLayer) -> Tensor:
    """The weight as (out, in), in its own dtype; a quantized one is dequantized into a new tensor."""
    weight = layer.weight
    if is_quantized(layer):
        return _dequantized(layer)
    assert isinstance(weight, Tensor)
    return weight.detach().mT if _is_transposed(layer) else weight.detach()


def as_stored(layer: BaseLayer, weight: Tensor) -> Tensor:
    """A weight given as (out, in) in the orientation in which the layer keeps it."""
    return weight.mT if _is_transposed(layer) else weight


def bias_of(layer: BaseLayer) -> Tensor | None:
    """The bias, or None."""
    bias = getattr(layer, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _dequantized(module: BaseLayer) -> Tensor:
    weight: Any = module.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    scale = getattr(weight, "SCB", None)
    scale = getattr(getattr(module, "state", None), "SCB", None) if scale is None else scale
    if scale is not None:  # bitsandbytes moves it into the module's state at the first forward
        return weight.data.float() * scale[:, None] / 127.0  # type: ignore[no-any-return]
    if type(weight).dequantize is not Tensor.dequantize:
        return weight.dequantize().detach()  # type: ignore[no-any-return]
    raise LayoutError(f"{type(module).__name__} keeps its weight in a form that cannot be read back; use another base")


def _is_transposed(layer: BaseLayer) -> bool:
    return layer.is_transposed if isinstance(layer, ExpertStack) else type(layer).__name__ == "Conv1D"


def weight_name(layer: BaseLayer, name: str) -> str:
    """What the parameter of a layer of that name is called."""
    return name if isinstance(layer, ExpertStack) else f"{name}.weight"


def called_module(layer: BaseLayer) -> nn.Module:
    """The module whose forward multiplies with the weight."""
    return layer.module if isinstance(layer, ExpertStack) else layer


def plain_layer(layer: BaseLayer, weight: Tensor) -> nn.Module | nn.Parameter:
    """What stands in a layer's place with a weight given as (out, in): a stack's parameter, or a plain module."""
    if isinstance(layer, ExpertStack):
        return nn.Parameter(as_stored(layer, weight).contiguous(), requires_grad=False)
    return plain_linear(layer, weight)


def plain_linear(module: nn.Module, weight: Tensor) -> nn.Module:
    """A plain layer of the same kind around a weight given as (out, in): Conv1D stays Conv1D, all else is nn.Linear."""
    out_features, in_features = weight.shape
    merged: nn.Module = (
        type(module)(out_features, in_features)
        if _is_transposed(module)
        else nn.Linear(in_features, out_features, bias=False, device="meta")
    )
    merged.weight = nn.Parameter(as_stored(module, weight).contiguous(), requires_grad=False)
    bias = bias_of(module)
    merged.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), requires_grad=False))
    return merged
