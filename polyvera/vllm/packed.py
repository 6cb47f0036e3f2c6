"""multiply: products with frozen matrices through packed copies of them, on the CPUs that have such a form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.platforms import CpuArchEnum, current_platform

from polyvera.adapter.packed_linear import Packs, fastest, forms, mkl
from polyvera.vllm.pair import Plain, Product

# vLLM's own number for its linear layers: shapes whose kernels are kept.
NUM_KERNELS = 32


class Packed:
    """A product with packed copies of a weight: vLLM's, which a compiled graph can hold, or a faster one outside it."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._handler: Any = ops.create_onednn_mm(weight.t(), NUM_KERNELS)
        self._eager: Any = self._handled

    def __call__(self, x: Tensor) -> Tensor:
        """The product, of contiguous rows."""
        return self._handled(x) if torch.compiler.is_compiling() else self._eager(x, None)

    def _handled(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        out = x.new_empty((x.shape[0], self._weight.shape[0]))
        torch.ops._C.onednn_mm.default(out, x, None, self._handler.handler_tensor)  # ops.onednn_mm takes longer
        return out

    def refill(self) -> None:
        """Packs the weight anew; the handler that goes releases the old copy, and a tensor names the new one."""
        new: Any = ops.create_onednn_mm(self._weight.t(), NUM_KERNELS)
        ours, theirs = self._handler.handler_tensor, new.handler_tensor
        old = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(old)
        others = [mkl] if mkl in forms() and Packs.can(self._weight) else []
        form = fastest(self._weight, [lambda _: self._handled, *others])
        self._eager = self._handled if form is None else form(self._weight)


def multiply(weight: Tensor) -> Product:
    """What multiplies with a weight: packed where vLLM packs its own linear layers so."""
    on_cpu = weight.device.type == "cpu" and getattr(ops, "_supports_onednn", False)
    if not on_cpu or current_platform.get_cpu_architecture() == CpuArchEnum.POWERPC:
        return Plain(weight)
    try:
        return Packed(weight)
    except RuntimeError:  # a dtype or a width that it does not take
        return Plain(weight)
