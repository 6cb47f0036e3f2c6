"""vLLM's own LoRA layers, each with the slots of vectors added: the same class with three methods more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.linear import RowParallelLinear

from polyvera.adapter.equation import NormParts
from polyvera.vllm.pair import SharedPair
from polyvera.vllm.slots import LayerSlots, PackedMember, SiteVectors

# Rows of the identity that go through a layer at once, to read its weight whatever form it is kept in.
PROBE_ROWS = 1024


class WithVectors(BaseLinearLayerWithLoRA):
    """What is added to a LoRA layer of vLLM's: some of its slots hold vectors beside the shared pair.

    Column-, row-, merged-, QKV-parallel and replicated layers alike; vLLM's slicing says what this rank computes.
    """

    slots: LayerSlots
    has_matrices: bool
    added_bias: Tensor | None
    token_lines: Tensor

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """Puts vectors, or vLLM's own matrices, into a slot, which loses what it held."""
        self.reset_lora(index)
        if is_vectors(lora_a):
            self.slots.put(index, lora_a, self.constants)
        elif self.has_matrices:
            super().set_lora(index, lora_a, lora_b)

    def reset_lora(self, index: int) -> None:
        """Makes a slot the bare base."""
        self.slots.clear(index)
        if self.has_matrices:
            super().reset_lora(index)

    def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
        if self.has_matrices:
            output = super()._apply_lora_to_output(x, output)
        flat, tokens = (output, x) if x.dim() == 2 else (output.view(-1, output.shape[-1]), x.reshape(-1, x.shape[-1]))
        self.slots.add(flat, tokens, self.token_lines[: tokens.shape[0]], self.added_bias)
        return output

    def constants(self, A: Tensor) -> NormParts:
        """‖W‖², W Aᵀ and A Aᵀ for this rank's rows, in fp32: the layer is asked, its weight never read."""
        square = sum(self._probe(rows).square().sum(0) for rows in _identity(A))
        parts = torch.as_tensor(square), self._probe(A).t(), A.float() @ A.float().t()
        if isinstance(self.base_layer, RowParallelLinear) and self.tp_size > 1:
            parts = tuple(tensor_model_parallel_all_reduce(part.contiguous()) for part in parts)
        return NormParts(*parts)

    def _probe(self, x: Tensor) -> Tensor:
        return self._get_quant_method().apply(self.base_layer, x, None).float()


def _identity(A: Tensor) -> list[Tensor]:
    eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    return [eye[first : first + PROBE_ROWS] for first in range(0, len(eye), PROBE_ROWS)]


def is_vectors(given: Any) -> bool:
    """Whether what vLLM passes on as lora_a is the list of one adapter's vectors."""
    return isinstance(given, list) and any(isinstance(v, SiteVectors) for v in given)


@lru_cache(maxsize=64)  # one class for each of vLLM's
def _with_vectors(kind: type[Any]) -> type[Any]:
    return type(f"{kind.__name__}AndVectors", (WithVectors, kind), {})


def add_slots(
    layer: Any, names: Sequence[str], is_served: Sequence[bool], pair: SharedPair, num_slots: int, *, gain: bool
) -> None:
    """Gives a LoRA layer of vLLM's slots for vectors, in place. names: the sites that it packs, in its order."""
    rows = _rows(layer)
    members = [PackedMember(n, *found, yes) for n, found, yes in zip(names, rows, is_served, strict=True)]
    kind: Any = type(layer)
    layer.__class__ = _with_vectors(kind)
    layer.slots = LayerSlots(pair, _columns(layer), members, num_slots, gain)
    layer.added_bias = _added_bias(layer)


def only_vectors(layer: Any, rank: int) -> None:
    """Takes a layer's matrices away; vLLM's warm-up reads their shapes, so shapes without memory stay."""
    for name in ("lora_a_stacked", "lora_b_stacked"):
        shaped = tuple(t.new_zeros(()).expand(_with_rank(t, rank, name)) for t in getattr(layer, name))
        setattr(layer, name, shaped)


def _with_rank(t: Tensor, rank: int, name: str) -> tuple[int, ...]:
    slots, one, out, wide = t.shape
    return (slots, one, rank, wide) if name == "lora_a_stacked" else (slots, one, out, rank)


def num_members(layer: Any) -> int:
    """How many sites a layer packs, as vLLM slices it."""
    return int(layer.n_slices)


def _rows(layer: Any) -> list[tuple[int, Tensor]]:
    """(all rows, those computed on this rank) of each member, by vLLM's own slicing of what has a row each."""
    packed = num_members(layer) > 1
    sizes = list(layer.base_layer.output_sizes) if packed else [layer.base_layer.output_size]
    lines = [torch.arange(size)[:, None] for size in sizes]
    if layer.tp_size > 1:
        lines = layer.slice_lora_b(lines) if packed else [layer.slice_lora_b(lines[0])]
    return [(size, line[:, 0]) for size, line in zip(sizes, lines, strict=True)]


def _columns(layer: Any) -> Tensor:
    """Which inputs this rank sees."""
    index = torch.arange(layer.base_layer.input_size)[None, :]
    is_cut = layer.tp_size > 1 and isinstance(layer.base_layer, RowParallelLinear)
    return torch.as_tensor(layer.slice_lora_a(index) if is_cut else index)[0]


def _added_bias(layer: Any) -> Tensor | None:
    """The bias that the layer's output holds before the ranks' parts are summed."""
    base = layer.base_layer
    elsewhere = isinstance(base, RowParallelLinear) and layer.tp_rank > 0
    bias = None if base.skip_bias_add or elsewhere else getattr(base, "bias", None)
    return None if bias is None else bias.detach()  # as a parameter it would become the layer's own
