"""Adapter: one trained adaptation as a value, a spec, a layout and one flat vector of trained numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from polyvera.adapter.basis import Basis, basis_at_hand, basis_of
from polyvera.adapter.hashing import hashing_of
from polyvera.adapter.layer_basis import frozen_factors
from polyvera.adapter.layout import Layout, Shape, Site, Widths, layout_of
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import BasisError, LayoutError

NOTHING: Mapping[str, float] = MappingProxyType({})
UNKNOWN: Mapping[str, str] = MappingProxyType({})
UNCOMPUTED: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """One trained adapter: a value, which a store keeps and load() brings into a model.

    spec: the choices it was trained with.
    layout: the shape and the place of each of its tensors.
    flat: its trained numbers, (layout.num_params,) fp32 on the CPU, in the layout's order.
    basis_sha256: of the frozen pair, '' without one.
    given: the frozen pair itself, only if no key draws it; where the spec names it, it is taken
        from those at hand.
    base: the fingerprint of the base model, '' if unknown.
    scores: named results, such as eval_loss.
    created: ISO 8601 in UTC, or ''.
    model: the name of the base model, '' if unknown.
    labels: the names of a head's outputs.
    lr: the learning rate that it was trained with, None if unknown.
    prompt_form: of the prompts in training, 'plain' or 'chat' (through the chat template); '' if unknown or without.
    task: what the head is for, a key of model.task.TASKS; '' is one of the labels, or text without labels.
    threshold: the probability from which one of several labels counts.
    origin: what else is known of the base, in PEFT's words: base_model_class, revision, task_type.
    computed: the frozen matrices that come from the base's weights, by `site.letter`, where they are at hand.

    Raises LayoutError if spec, layout, basis and numbers do not belong together.
    """

    spec: AdapterSpec
    layout: Layout
    flat: Tensor
    basis_sha256: str = ""
    given: Basis | None = None
    base: str = ""
    scores: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    created: str = ""
    model: str = ""
    labels: tuple[str, ...] = ()
    lr: float | None = None
    prompt_form: str = ""
    task: str = ""
    threshold: float = 0.5
    origin: Mapping[str, str] = field(default_factory=lambda: UNKNOWN)
    computed: Mapping[str, Tensor] = field(default_factory=lambda: UNCOMPUTED)

    def __post_init__(self) -> None:
        if self.flat.shape != (self.layout.num_params,):
            raise LayoutError(f"{tuple(self.flat.shape)} numbers for a layout of {self.layout.num_params}")
        self.layout.check(self.spec)
        if self.given is None and self.spec.made_basis:
            object.__setattr__(self, "given", basis_at_hand(self.spec.made_basis))
        if self.given is not None and self.given.key != self.layout.basis:
            raise LayoutError(f"the basis given is {self.given.key}, the layout's is {self.layout.basis}")

    def __repr__(self) -> str:
        of = f", of {self.model}" if self.model else ""
        return f"Adapter({self.layout.title}, {self.num_params:,} numbers, {4 * self.num_params:,} bytes{of})"

    @cached_property
    def expanded(self) -> Tensor:
        """The numbers of every letter, in the order of layout.expanded: `flat` itself, save where a hash makes them."""
        return self.flat if self.layout.hash_size is None else hashing_of(self.spec, self.layout).expand(self.flat)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every trained tensor by `site.letter` (a head's by its own name), as views of `expanded`."""
        flat, entries = self.expanded, self.layout.expanded.entries
        return {k: flat[e.offset : e.offset + e.size].view(e.shape) for k, e in entries.items()}

    @property
    def num_params(self) -> int:
        """Trained numbers, the head's included."""
        return self.layout.num_params

    def basis(self) -> Basis | None:
        """The frozen pair, drawn where need be. Raises BasisError where it isn't the one of training, or at hand."""
        if self.layout.basis is None:
            return None
        basis = self.given or basis_of(self.layout.basis)
        if self.basis_sha256 and basis.sha256 != self.basis_sha256:
            raise BasisError(
                f"the basis {self.layout.basis} has sha256 {basis.sha256[:12]} here, but the adapter was trained on "
                f"{self.basis_sha256[:12]}; it is not applied"
            )
        return basis

    def check_whole(self) -> None:
        """Raises LayoutError where its head is one to be made, and has not been: it would answer without one."""
        if self.spec.frozen_head is not None:
            raise LayoutError(
                f"the head of this adapter ({self.spec.frozen_head!r}) is made by the base, and has not been: use "
                "polyvera.load(), or with_head() first"
            )

    def frozen(self, site: Site) -> dict[str, Tensor]:
        """The matrices of one layer that are neither trained nor shared, by letter, fp32 on the CPU.

        Raises BasisError where they come from the base's weights and are not at hand; with_base() computes them.
        """
        if not self.computed:
            return frozen_factors(self.layout, site)
        return {x: self.computed[f"{site.name}.{x}"] for x in self.layout.method.made}


def adapter_from(
    spec: AdapterSpec,
    shapes: Mapping[str, Widths],
    tensors: Mapping[str, Tensor],
    given: Basis | None = None,
    base: str = "",
) -> Adapter:
    """An adapter made of tensors.

    spec: the choices it was trained with. shapes: the widths of each adapted layer.
    tensors: keyed `site.letter`; a key of no layer is a tensor of the head.
    given: the frozen pair, if no key draws it. base: the fingerprint of the base model, '' if unknown.

    Raises LayoutError for tensors that are missing, too many, of other shapes, or that the method's ties or the spec's
    hash do not make.
    """
    sited = {f"{site}.{letter}" for site in shapes for letter in spec.row.trained}
    head: dict[str, Shape] = {k: tuple(t.shape) for k, t in tensors.items() if k not in sited}
    layout = layout_of(spec, shapes, head)
    if given is not None:
        layout = replace(layout, basis=given.key)
    missing = sited - set(tensors)
    if missing:
        raise LayoutError(f"{len(missing)} tensors are missing, among them {min(missing)!r}")
    flat = torch.empty(layout.expanded.num_params)
    for key, entry in layout.expanded.entries.items():
        if tuple(tensors[key].shape) != entry.shape:
            raise LayoutError(f"{key} has shape {tuple(tensors[key].shape)}, but the layout has {entry.shape}")
        flat[entry.offset : entry.offset + entry.size] = tensors[key].detach().float().flatten()
    sha256 = "" if layout.basis is None else (given or basis_of(layout.basis)).sha256
    flat = flat if spec.hash_size is None else hashing_of(spec, layout).fold(flat)
    adapter = Adapter(spec, layout, flat, sha256, given, base)
    _check_made(adapter, tensors)
    return adapter


def _check_made(adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    method, is_hashed = adapter.layout.method, adapter.spec.hash_size is not None
    made = {letter for letter in method.trained if letter in method.tied or (is_hashed and letter in method.hashed)}
    for key, own in adapter.tensors.items() if made else ():
        if key.rpartition(".")[2] in made and not torch.allclose(own, tensors[key].detach().float().cpu(), atol=1e-6):
            raise LayoutError(f"{key} holds other numbers than {method.name} makes for it from those of other layers")
