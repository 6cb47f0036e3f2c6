"""merge folds an adapter into plain weights; Switch moves a merged model from one adapter to another, exactly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from polyvera.adapter.adapted_experts import Adapted
from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.base_layer import as_stored, dense_weight, is_quantized, layer_kind, plain_layer
from polyvera.adapter.dequantize import dequantized, plain_dtype, quantized_layers
from polyvera.adapter.equation import delta_weight
from polyvera.adapter.inject import eject, load, slot_table
from polyvera.adapter.layer import AdaptedHead
from polyvera.adapter.layer_bank import LayerBank
from polyvera.adapter.tie import copy_of, end_tie, put_parameter
from polyvera.errors import LayoutError, SlotError


def merged_weight(layer: LayerBank, W: Tensor, slot: int) -> Tensor:
    """g ⊙ (W + ΔW) of one slot, (out, in): summed in fp32, rounded once to W's dtype.

    layer: the share of a bank in one layer. W: (out, in), or (experts, out, in). slot: the bank's own index. Raises
    LayoutError for a result that is not finite.
    """
    f = layer.matrices(slot)
    summed = W.float() + delta_weight(f["A"], f["B"], f.get("d"), f.get("b"), layer.site.scale, f.get("C"))
    if "m" in f:
        summed = (f["m"] / layer.row_norm(slot))[..., None] * summed
    if not bool(torch.isfinite(summed).all()):
        raise LayoutError(f"merging {layer.site.name} gives numbers that are not finite: the adapter is broken")
    return summed.to(W.dtype)


def merge(model: nn.Module, slot: int | None = None, *, dequantize: bool = False) -> nn.Module:
    """A plain model with one adapter folded into its weights, W' = g ⊙ (W + ΔW), ready for save_pretrained().

    model: with adapters in it; it is consumed, since the result shares what is not adapted.
    slot: whose adapter; None takes the only one.
    dequantize: allow a quantized base, all of whose layers are then plain.

    Raises SlotError for a slot without an adapter, LayoutError for a quantized base without dequantize, or for weights
    that would not be finite.
    """
    bank, index = _held(model, slot)
    quantized = [n for n, layer in bank.layers.items() if is_quantized(layer.base)] or quantized_layers(model)
    if quantized and not dequantize:
        raise LayoutError(
            f"{quantized[0]} is quantized, and a merged model keeps plain weights alone, since others would round the "
            "adapter away: pass dequantize=True (--dequantize) for those, or merge into the unquantized base"
        )
    dtype = plain_dtype(model) if quantized else None
    with torch.no_grad():
        plain = {n: _merged_layer(layer, index, dtype) for n, layer in bank.layers.items()}
        heads = {n: _merged_head(model, bank, n, index) for n in bank.heads}
    eject(model)
    for name, module in {**plain, **heads}.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    end_tie(model)
    return dequantized(model) if quantized else model


def _merged_layer(layer: LayerBank, index: int, dtype: torch.dtype | None) -> nn.Module | nn.Parameter:
    weight = dense_weight(layer.base)
    return plain_layer(layer.base, merged_weight(layer, weight if dtype is None else weight.to(dtype), index))


def _merged_head(model: nn.Module, bank: Bank, name: str, index: int) -> nn.Module:
    adapted = model.get_submodule(name)
    assert isinstance(adapted, AdaptedHead)
    head = copy.deepcopy(adapted.base)
    for key, value in bank.heads[name].tensors(index).items():
        parameter = head.get_parameter(key)
        parameter.copy_(value.to(parameter.dtype))
    return head


def _held(model: nn.Module, slot: int | None) -> tuple[Bank, int]:
    table = slot_table(model)
    if slot is None and len(table.occupied) == 1:
        slot = table.occupied[0]
    held = None if slot is None else table.holder(slot)
    if held is None or not isinstance(held[0], Bank):
        raise SlotError(f"slot={slot} holds no adapter to merge; the occupied slots are {table.occupied}: name one")
    return held[0], held[1]


class Switch:
    """A model that carries one adapter at a time in its weights, W' = W + ΔW, and changes it in place.

    W' - ΔW + ΔW' in floating point drifts, so each change starts from a copy of W, which is kept for every layer that
    was ever adapted: after any number of changes, restore() gives back the same bits. Memory: a second copy of those
    weights.

    model: a bare base model, changed in place. Raises LayoutError for one that has adapters in it.
    """

    def __init__(self, model: nn.Module) -> None:
        if any(isinstance(m, Adapted) for m in model.modules()):
            raise LayoutError("Switch takes a bare model: call eject(model) first")
        self.model = model
        self._originals: dict[str, Tensor] = {}
        self._changed: set[str] = set()
        self._tied: dict[str, nn.Parameter] = {}

    def to(self, adapter: Adapter, *, check_base: bool = True) -> nn.Module:
        """Puts this adapter's weights in place of whatever is merged now. Raises as load() and merge() do."""
        self.restore()
        (slot,) = load(self.model, adapter, check_base=check_base)
        try:
            fresh = self._merged(*_held(self.model, slot))
        finally:
            eject(self.model)
        for name, value in fresh.items():
            parameter = self._alone(name)
            if name not in self._originals:
                self._originals[name] = parameter.detach().clone()
            parameter.data.copy_(value)
            self._changed.add(name)
        return self.model

    def restore(self) -> nn.Module:
        """The base model again, bit for bit."""
        for name in self._changed:
            self.model.get_parameter(name).data.copy_(self._originals[name])
        self._changed.clear()
        for name, parameter in self._tied.items():
            put_parameter(self.model, name, parameter)
        self._tied.clear()
        return self.model

    def _alone(self, name: str) -> nn.Parameter:
        """The parameter of that name; one that has other names too, such as an embedding's, stays as it is."""
        parameter = self.model.get_parameter(name)
        if sum(p is parameter for _, p in self.model.named_parameters(remove_duplicate=False)) > 1:
            self._tied[name] = parameter
            return put_parameter(self.model, name, copy_of(parameter))
        return parameter

    @torch.no_grad()
    def _merged(self, bank: Bank, index: int) -> dict[str, Tensor]:
        fresh: dict[str, Tensor] = {}
        for name, layer in bank.layers.items():
            if is_quantized(layer.base):
                raise LayoutError(f"{name} is quantized: Switch works on plain weights; use route() instead")
            fresh[layer_kind(layer.base).weight_name(name)] = as_stored(
                layer.base, merged_weight(layer, dense_weight(layer.base), index)
            )
        for head in bank.heads.values():
            fresh.update({f"{head.name}.{key}": value for key, value in head.tensors(index).items()})
        return fresh
