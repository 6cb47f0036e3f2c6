"""multiply: products with frozen matrices through vLLM's own packed form of them, on the CPUs that have one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.platforms import CpuArchEnum, current_platform

from polyvera.vllm.pair import Plain, Product

# vLLM's own number for its linear layers: shapes whose kernels are kept.
NUM_KERNELS = 32


class Packed:
    """A product with a packed copy of a weight, which a tensor names, so that a compiled graph sees a new copy."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._handler: Any = ops.create_onednn_mm(weight.t(), NUM_KERNELS)

    def __call__(self, x: Tensor) -> Tensor:
        """The product, of contiguous rows."""
        out = x.new_empty((x.shape[0], self._weight.shape[0]))
        torch.ops._C.onednn_mm.default(out, x, None, self._handler.handler_tensor)  # ops.onednn_mm takes longer
        return out

    def refill(self) -> None:
        """Packs the weight anew; the handler that goes releases the old copy."""
        new: Any = ops.create_onednn_mm(self._weight.t(), NUM_KERNELS)
        ours, theirs = self._handler.handler_tensor, new.handler_tensor
        old = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(old)


def multiply(weight: Tensor) -> Product:
    """What multiplies with a weight: packed where vLLM packs its own linear layers so."""
    on_cpu = weight.device.type == "cpu" and getattr(ops, "_supports_onednn", False)
    if not on_cpu or current_platform.get_cpu_architecture() == CpuArchEnum.POWERPC:
        return Plain(weight)
    try:
        return Packed(weight)
    except RuntimeError:  # a dtype or a width that it does not take
        return Plain(weight)
