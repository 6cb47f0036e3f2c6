"""What is asked of a frozen base layer besides base(x): its widths, its weight as (out, in), its bias.

A base layer is a module, or a stack of experts, whose weight is (experts, out, in). What differs between the kinds is a
row of LAYER_KINDS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
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

PACKS = "support_avx512bf16_for_cpu"  # of bitsandbytes' Linear4bit: whether it packs its weight
# What torchao's weights call how the inputs are rounded, None for weights alone.
INPUT_ROUNDING = ("act_quant_kwargs", "activation_quantization")


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One kind of base layer.

    holds: whether a layer is of it. is_transposed: whether its weight is kept as (in, out). module: the module that
    multiplies with the weight. place, weight_name: by the layer's name, what that module and the parameter are called.
    plain: (layer, weight as it is kept) -> what stands in the layer's place once that is merged.
    """

    holds: Callable[[Any], bool]
    is_transposed: Callable[[Any], bool]
    module: Callable[[Any], nn.Module]
    place: Callable[[str], str]
    weight_name: Callable[[str], str]
    plain: Callable[[Any, Tensor], nn.Module | nn.Parameter]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one weight (in) -> (out): nn.Linear, a quantized subclass, transformers' Conv1D.

    A subclass with a forward of its own, such as a router that returns a tuple, is not.
    """
    kind = type(module)
    if not isinstance(module, nn.Linear):
        return _is_conv1d(module)
    is_plain = kind.forward is nn.Linear.forward or kind.__name__ in SAME_PRODUCT
    return is_plain or kind.__module__.partition(".")[0] in QUANTIZED


def layer_kind(layer: BaseLayer) -> LayerKind:
    """The row of a layer's kind."""
    return next(kind for kind in LAYER_KINDS if kind.holds(layer))


def widths(layer: BaseLayer) -> Widths:
    """(in_features, out_features), and the number of experts of a stack."""
    module: Any = layer
    if hasattr(module, "in_features"):  # a quantized weight may have another shape
        return int(module.in_features), int(module.out_features)
    *experts, tall, wide = dense_weight(layer).shape
    return wide, tall, *experts


def is_quantized(layer: BaseLayer) -> bool:
    """Whether the weight is not a plain floating-point tensor."""
    weight: Any = layer.weight
    return type(weight) not in (nn.Parameter, Tensor) or not weight.dtype.is_floating_point


def rounds_inputs(layer: BaseLayer) -> bool:
    """Whether a quantized layer's product rounds what it reads to few bits, too, and not its weight alone."""
    weight = layer.weight
    return hasattr(weight, "SCB") or any(getattr(weight, name, None) is not None for name in INPUT_ROUNDING)


def keep_readable(model: nn.Module) -> None:
    """Lets bitsandbytes keep its weights of 4 bits as they were stored, on every CPU.

    On those that multiply in bfloat16 it would pack them at the first forward: such a layer passes no gradient on, its
    weight is not read back, and it multiplies in bfloat16 whatever its inputs are in.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, PACKS):
            setattr(layer, PACKS, False)
            state = getattr(layer.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                unpacked: Any = import_module("bitsandbytes.functional")._convert_weight_packed_for_cpu_inverse
                layer.weight.data, layer.weight.quant_state = unpacked(layer.weight.data, state)


def dense_weight(layer: BaseLayer) -> Tensor:
    """The weight as (out, in), in its own dtype; a quantized one is dequantized into a new tensor."""
    weight = layer.weight
    if is_quantized(layer):
        return _dequantized(layer)
    assert isinstance(weight, Tensor)
    return as_stored(layer, weight.detach())


def as_stored(layer: BaseLayer, weight: Tensor) -> Tensor:
    """A weight given as (out, in) in the orientation in which the layer keeps it, or the other way round."""
    return weight.mT if layer_kind(layer).is_transposed(layer) else weight


def bias_of(layer: BaseLayer) -> Tensor | None:
    """The bias, or None."""
    bias = getattr(layer, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def plain_layer(layer: BaseLayer, weight: Tensor) -> nn.Module | nn.Parameter:
    """What stands in a layer's place with a weight given as (out, in): a plain module, or a stack's parameter."""
    return layer_kind(layer).plain(layer, as_stored(layer, weight).contiguous())


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


def _is_conv1d(layer: Any) -> bool:
    return type(layer).__name__ == "Conv1D"


def _conv1d(layer: Any, weight: Tensor) -> nn.Module:
    return _with_weight(type(layer)(*weight.shape[::-1]), layer, weight)


def _linear(layer: Any, weight: Tensor) -> nn.Module:
    out_features, in_features = weight.shape
    return _with_weight(nn.Linear(in_features, out_features, bias=False, device="meta"), layer, weight)


def _with_weight(made: nn.Module, layer: nn.Module, weight: Tensor) -> nn.Module:
    """A new layer with that weight and a copy of another's bias."""
    made.weight = _parameter(layer, weight)
    bias = bias_of(layer)
    made.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), requires_grad=False))
    return made


def _parameter(layer: Any, weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def _itself(given: Any) -> Any:
    return given


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _of_module(name: str) -> str:
    return f"{name}.weight"


# Of several that hold, the first counts.
LAYER_KINDS = (
    LayerKind(
        holds=lambda layer: isinstance(layer, ExpertStack),
        is_transposed=lambda layer: layer.is_transposed,
        module=lambda layer: layer.module,
        place=_parent,
        weight_name=_itself,
        plain=_parameter,
    ),
    LayerKind(_is_conv1d, lambda layer: True, _itself, _itself, _of_module, _conv1d),
    LayerKind(lambda layer: True, lambda layer: False, _itself, _itself, _of_module, _linear),
)
