"""inject puts a bank into a model, extract takes an adapter out, load brings adapters in, eject restores the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from polyvera.adapter.adapted_experts import Adapted, AdaptedExperts
from polyvera.adapter.adapter import NOTHING, Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.base_layer import is_quantized, keep_readable, layer_kind, widths
from polyvera.adapter.basis import Basis, basis_of
from polyvera.adapter.expert_stack import form_of
from polyvera.adapter.fingerprint import check_fingerprint, fingerprint
from polyvera.adapter.layer import AdaptedHead, AdaptedLinear, bare_head
from polyvera.adapter.layer_basis import frozen_factors
from polyvera.adapter.layer_use import gets_tokens_first
from polyvera.adapter.layout import Layout, Shape, layout_of
from polyvera.adapter.slot_table import SlotTable
from polyvera.adapter.spec import FROZEN_HEADS, AdapterSpec
from polyvera.adapter.targets import base_layers, find_sites, head_of
from polyvera.errors import BasisError, LayoutError, SlotError, SpecError, TargetError, did_you_mean


def inject(
    model: nn.Module, spec: AdapterSpec, num_slots: int = 1, *, product_dtype: torch.dtype | None = None
) -> Bank:
    """Puts a bank of trainable slots into the model, each a fresh adapter (the identity), and freezes all else.

    model: changed in place; it stays an ordinary module, and eject() gives it back.
    spec: the method, rank, targets and every other choice.
    num_slots: how many adapters train side by side, in slots of one bank; their numbers are fp32.
    product_dtype: of the products with A and B; None is autocast's under autocast, else the input's where that is
        bfloat16 or float16 on an accelerator, and fp32 otherwise, so on any CPU.

    Raises TargetError for targets that match no layer, LayoutError where layers don't fit, SpecError, BasisError for a
    made basis that is not at hand.
    """
    sites = find_sites(model, spec)
    head = head_tensors(model, spec.head)
    layout = layout_of(spec, sites, {k: tuple(t.shape) for k, t in head.items()})
    basis = None if layout.basis is None else basis_of(layout.basis)
    model.requires_grad_(False)
    bank = add_bank(model, layout, num_slots, basis, spec=spec, trainable=True, product_dtype=product_dtype)
    for slot in bank.slots:
        bank.start(slot, head)
    return bank


def load(
    model: nn.Module,
    adapters: Adapter | Sequence[Adapter],
    *,
    names: str | Sequence[str | None] | None = None,
    check_base: bool = True,
) -> list[int]:
    """Brings trained adapters into the model for inference; returns the slot of each.

    model: changed in place; eject() gives it back. Adapters of one layout share a bank in it; different methods, ranks,
        targets and bases live side by side.
    adapters: one, or N of them.
    names: one for each (None for none), by which route("name") finds its slot; one that is there already goes to the
        new adapter.
    check_base: refuse an adapter that was trained on another base model.

    Raises FingerprintError for an adapter of another base model, LayoutError where layers don't fit, BasisError, and
    SlotError where names are not one for each; on an error the model is as it was.
    """
    several = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    called = _names(names, len(several))
    if check_base:
        _check_bases(model, several)
    for adapter in several:
        adapter.check_whole()
        _check_fits(model, adapter.layout)
    bases = [adapter.basis() for adapter in several]  # raises before the model is touched
    slots = [_loaded(model, adapter, basis) for adapter, basis in zip(several, bases, strict=True)]
    for slot, name in zip(slots, called, strict=True):
        slot_table(model).call(slot, name)
    return slots


def _names(names: str | Sequence[str | None] | None, num: int) -> list[str | None]:
    """A name or None for each adapter. Raises SlotError for another number of names, or one that stands twice."""
    several: list[str | None] = [None] * num if names is None else [names] if isinstance(names, str) else [*names]
    if len(several) != num:
        raise SlotError(f"{len(several)} names for {num} adapters: give one for each")
    twice = next((name for name in several if name is not None and several.count(name) > 1), None)
    if twice is not None:
        raise SlotError(f"the name {twice!r} stands twice: give each adapter its own")
    return several


def _loaded(model: nn.Module, adapter: Adapter, basis: Basis | None) -> int:
    """Puts an adapter into a free slot of the bank of its layout, which grows where it must."""
    alike = (b for b in banks_of(model) if not b.trainable and b.takes(adapter.layout, adapter.basis_sha256))
    bank = next(alike, None) or add_bank(model, adapter.layout, 1, basis)
    slot = bank.free_slot()
    bank.put(slot, adapter)
    return slot


def add_bank(
    model: nn.Module,
    layout: Layout,
    num_slots: int,
    basis: Basis | None,
    *,
    spec: AdapterSpec | None = None,
    trainable: bool = False,
    dtype: torch.dtype = torch.float32,
    product_dtype: torch.dtype | None = None,
    any_classes: bool = False,
) -> Bank:
    """An empty bank of that layout in the model, beside those there. Raises LayoutError where it doesn't fit.

    spec: of the adapters that start in it. any_classes: its head may have another number of classes than the model's.
    """
    _check_fits(model, layout, any_classes)
    keep_readable(model)
    layers = base_layers(model)
    table = slot_table(model)
    device = next(layers[layout.sites[0].name].parameters()).device
    bank = Bank(
        layout,
        num_slots,
        basis,
        table,
        device=device,
        dtype=dtype,
        spec=spec,
        trainable=trainable,
        product_dtype=product_dtype,
    )
    for site in layout.sites:
        base = layers[site.name]
        name, module = layer_kind(base).place(site.name), layer_kind(base).module(base)
        _wrap(model, name, AdaptedExperts if form_of(module) else AdaptedLinear, table, bank.layer(site, base))
    for name in sorted({_head_name(model, key) for key, _ in layout.head}):
        _wrap(model, name, AdaptedHead, table, bank.head(name))
    return bank


def extract(bank: Bank, slot: int, model: nn.Module | None = None, scores: Mapping[str, float] = NOTHING) -> Adapter:
    """The adapter in a slot, with the spec that the bank or the adapter put there had; it shares no memory with it.

    bank: as inject() returned it.
    slot: a number of bank.slots.
    model: the adapted model, whose fingerprint the adapter gets; without it the adapter is of no known base.
    scores: named results to keep with it.

    Raises SlotError for an empty slot, SpecError for a spec in the model's place.
    """
    if isinstance(model, AdapterSpec):
        raise SpecError("extract(bank, slot, model) takes no spec: the bank keeps the one that it was injected with")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    base = "" if model is None else fingerprint(model)
    named = str(getattr(model, "name_or_path", ""))
    origin = {} if model is None else {"base_model_class": type(model).__name__}
    taken = replace(bank.extract(slot), base=base, model=named, scores=dict(scores), created=created)
    return replace(taken, origin=origin, computed=_computed(bank))


def _computed(bank: Bank) -> dict[str, Tensor]:
    """The frozen matrices that a bank computed from the base's weights."""
    letters = bank.layout.method.made if bank.layout.method.reads_base else ()
    return {f"{n}.{x}": layer.get_buffer(x).float().cpu() for n, layer in bank.layers.items() for x in letters}


def with_base(adapter: Adapter, model: nn.Module | None) -> Adapter:
    """The adapter with the frozen matrices that come from the base's weights; itself where none do, or without a model.

    model: the bare base. Raises BasisError for one without weights, LayoutError for one whose layers don't fit.
    """
    if adapter.computed or model is None or not adapter.layout.method.reads_base:
        return adapter
    _check_fits(model, adapter.layout)
    layers = base_layers(model)
    if any(next(layers[name].parameters()).is_meta for name in adapter.layout.site_names):
        raise BasisError(f"the basis is computed from the base's weights, and this {type(model).__name__} has none")
    made = {site.name: frozen_factors(adapter.layout, site, layers[site.name]) for site in adapter.layout.sites}
    return replace(adapter, computed={f"{n}.{x}": t.cpu() for n, own in made.items() for x, t in own.items()})


def eject(model: nn.Module) -> nn.Module:
    """Takes every bank out: the bare base model again, the same module objects as before inject()."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            _set(model, name, module.base)
    return model


def banks_of(model: nn.Module) -> list[Bank]:
    """The banks in a model, in slot order."""
    return [bank for bank in slot_table(model).banks if isinstance(bank, Bank)]


def slot_table(model: nn.Module) -> SlotTable:
    """The slot numbers of a model, new where it has no bank yet."""
    for module in model.modules():
        if isinstance(module, Adapted):
            return module.table
    return SlotTable()


def head_tensors(model: nn.Module, head: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the named head modules by full name; none of a head that is made.

    Raises TargetError for one that is not at the top level.
    """
    found: dict[str, Tensor] = {}
    for name in (name for name in head if name not in FROZEN_HEADS):
        if "." in name and head_of(model, f"{name}.") != name:
            top = ", ".join(n for n, _ in model.named_children())
            raise TargetError(
                f"head={name!r} is inside another module; a head is one of {type(model).__name__}'s: {top}"
            )
        try:
            module = model.get_submodule(name)
        except AttributeError:
            names = [n for n, _ in model.named_modules() if n]
            raise TargetError(
                f"head={name!r} is not a module of {type(model).__name__}{did_you_mean(name, (*names, *FROZEN_HEADS))}"
            ) from None
        found.update({f"{name}.{k}": p for k, p in bare_head(module).named_parameters()})
    return found


def _check_bases(model: nn.Module, adapters: Sequence[Adapter]) -> None:
    if any(adapter.base for adapter in adapters):
        here = fingerprint(model)
        for adapter in adapters:
            check_fingerprint(adapter.base, here)


def _check_fits(model: nn.Module, layout: Layout, any_classes: bool = False) -> None:
    layers = base_layers(model)
    for site in layout.sites:
        if site.name not in layers:
            raise LayoutError(
                f"the adapter is for a layer {site.name!r}, which {type(model).__name__} lacks"
                f"{did_you_mean(site.name, layers)}"
            )
        if widths(layers[site.name]) != site.widths:
            raise LayoutError(
                f"{site.name} is {widths(layers[site.name])} (in, out) wide here, "
                f"the adapter was made for {site.widths}"
            )
        if layout.method.reads_base and is_quantized(layers[site.name]):
            raise LayoutError(
                f"{site.name} is quantized, and the basis is computed from the base's own weights: take the base "
                "unquantized, or a basis that is drawn (init)"
            )
    classes = num_classes(model, layout) if any_classes else None
    for key, shape in layout.head:
        _check_head(model, key, shape, classes)


def num_classes(model: nn.Module, layout: Layout) -> int | None:
    """The classes of an adapter's head, None where it has none. Raises LayoutError where its tensors differ in that."""
    there = head_tensors(model, {_head_name(model, key) for key, _ in layout.head})
    counts = {shape[0] for key, shape in layout.head if key in there and shape and _is_of_classes(model, there[key])}
    if len(counts) > 1:
        raise LayoutError(f"the adapter's head has tensors for {' and for '.join(map(str, sorted(counts)))} classes")
    return next(iter(counts), None)


def _is_of_classes(model: nn.Module, tensor: Tensor) -> bool:
    """Whether a head's tensor has a row for each class."""
    return tensor.dim() > 0 and len(tensor) == getattr(getattr(model, "config", None), "num_labels", None)


def _check_head(model: nn.Module, key: str, shape: Shape, classes: int | None) -> None:
    name = _head_name(model, key)
    there = head_tensors(model, (name,)).get(key)
    wanted = None if there is None else tuple(there.shape)
    if there is not None and classes is not None and _is_of_classes(model, there):
        wanted = (classes, *there.shape[1:])
    if there is None or wanted != shape:
        found = "no such tensor" if there is None else f"shape {tuple(there.shape)}"
        raise LayoutError(f"the adapter's head has {key} of shape {shape}; {type(model).__name__} has {found}")


def _head_name(model: nn.Module, key: str) -> str:
    name = head_of(model, key) or key.partition(".")[0]
    if any(name.partition(".")[0] == child for child, _ in model.named_children()):
        return name
    raise LayoutError(f"the adapter has a head tensor {key!r}, and {type(model).__name__} has no such module")


def _wrap(model: nn.Module, name: str, kind: type[nn.Module], table: SlotTable, share: nn.Module) -> None:
    module = model.get_submodule(name)
    if not isinstance(module, Adapted):
        training, module = module.training, kind(module, table)
        module.train(training)
        module.has_tokens_first = gets_tokens_first(model, name)  # type: ignore[assignment]
        _set(model, name, module)
    module.banks.append(share.train(module.training))  # type: ignore[union-attr,operator]


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
