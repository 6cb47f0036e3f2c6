"""What is asked of a frozen base layer besides base(x): its widths, its weight as (out, in), its bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyvera.errors import LayoutError


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps (..., in) to (..., out) by one weight: nn.Linear, its quantized kin, transformers' Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def widths(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features)."""
    if _is_transposed(module):
        rows, columns = module.weight.shape  # type: ignore[union-attr]
        return int(rows), int(columns)
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def is_quantized(module: nn.Module) -> bool:
    """Whether the weight is not a plain floating-point tensor."""
    weight = module.weight
    return type(weight) not in (nn.Parameter, Tensor) or not weight.dtype.is_floating_point  # type: ignore[union-attr]


def dense_weight(module: nn.Module) -> Tensor:
    """The weight as (out, in), in its own dtype; a quantized one is dequantized into a new tensor."""
    weight = module.weight
    if is_quantized(module):
        return _dequantized(module)
    assert isinstance(weight, Tensor)
    return weight.detach().T if _is_transposed(module) else weight.detach()


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias, or None."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _dequantized(module: nn.Module) -> Tensor:
    weight = module.weight
    if hasattr(weight, "dequantize"):
        dense = weight.dequantize()
        assert isinstance(dense, Tensor)
        return dense.detach()
    if weight.dtype == torch.int8 and getattr(module.weight, "SCB", None) is not None:  # type: ignore[union-attr]
        return _bitsandbytes_8bit(module)
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[union-attr,no-any-return]
    raise LayoutError(f"{type(module).__name__} keeps its weight in a form that cannot be read back; use another base")


def _bitsandbytes_8bit(module: nn.Module) -> Tensor:
    scale = module.weight.SCB  # type: ignore[union-attr]
    return module.weight.data.float() * scale[:, None] / 127.0  # type: ignore[union-attr,operator,no-any-return,index]


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def plain_linear(module: nn.Module, weight: Tensor) -> nn.Module:
    """A plain layer of the same kind around a weight given as (out, in): Conv1D stays Conv1D, all else is nn.Linear."""
    if _is_transposed(module):
        merged = type(module)(weight.shape[0], weight.shape[1])
        merged.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    else:
        merged = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        merged.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    bias = bias_of(module)
    merged.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return merged
