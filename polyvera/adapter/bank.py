"""Bank: N slots of one layout in one model. A slot is one row of memory; each layer sees its columns of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.base_layer import BaseLayer
from polyvera.adapter.basis import Basis
from polyvera.adapter.hashing import Hashing, check_same_hash, hashing_of, initial
from polyvera.adapter.layer import HeadBank
from polyvera.adapter.layer_bank import LayerBank
from polyvera.adapter.layer_basis import Copies, frozen_factors
from polyvera.adapter.layout import Entry, Layout, Site
from polyvera.adapter.lazy_zeros import zeros
from polyvera.adapter.method import ROW_NORM
from polyvera.adapter.shared_input import SharedInput
from polyvera.adapter.slot_table import SlotTable
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError, SlotError


class Bank:
    """N slots for adapters of one layout.

    slots: their numbers, which are counted over the whole model; 0 is the base model.
    flat: (num_slots, layout.num_params), one row a slot; every layer's factors are views of it.
    spec: what the bank was injected with, None for one that takes trained adapters, each with a spec of its own.

    inject() and load() make banks. Raises SlotError for num_slots < 1.
    """

    def __init__(
        self,
        layout: Layout,
        num_slots: int,
        basis: Basis | None,
        table: SlotTable,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        trainable: bool = False,
        spec: AdapterSpec | None = None,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        if num_slots < 1:
            raise SlotError(f"num_slots={num_slots}: a bank has at least one slot")
        self.layout, self.basis = layout.expanded, basis
        self.table, self.dtype, self.trainable = table, dtype, trainable
        self.product_dtype, self.position = product_dtype, len(table.banks)
        self.dropout = 0.0 if spec is None else spec.dropout
        self.flat = zeros((num_slots, self.layout.num_params), device=device, dtype=dtype)
        self.spec, self._specs = spec, dict[int, AdapterSpec]()
        self.version = 0
        self._written: dict[int, int] = {}
        self.occupied: set[int] = set()
        self.layers: dict[str, LayerBank] = {}
        self.heads: dict[str, HeadBank] = {}
        self._tied: dict[int, nn.Parameter] = {}
        self._shared: dict[tuple[str, int], SharedInput] = {}
        self._copies = Copies(device, dtype)
        self._accepted = self.layout
        self.slots: tuple[int, ...] = tuple(table.add(self, num_slots))

    def __repr__(self) -> str:
        return f"Bank({self.summary()})"

    def summary(self) -> str:
        """Method, rank, slots and bytes, in one line."""
        used, per_slot = len(self.occupied), self.flat.element_size() * self.layout.num_params
        shared = "" if self.basis is None else f", basis {4 * self.basis.key.num_params:,} bytes"
        return (
            f"{self.layout.title}, {used} of {self.num_slots} slots used, {per_slot:,} bytes a slot, "
            f"{per_slot * self.num_slots:,} in all{shared}"
        )

    @property
    def first(self) -> int:
        """The first of this bank's slot numbers."""
        return self.slots[0]

    @property
    def table_number(self) -> int:
        """The number of the model's slot table."""
        return self.table.number

    @property
    def num_slots(self) -> int:
        """How many slots this bank has."""
        return len(self.flat)

    def written(self, index: int) -> int:
        """A number that changes whenever that slot is written."""
        return self.version if self.trainable else self._written.get(index, 0)

    def spec_of(self, index: int) -> AdapterSpec:
        """The spec of the adapter in a slot, by the bank's own index. Raises LayoutError if it is not known."""
        spec = self.spec or self._specs.get(index)
        if spec is None:
            raise LayoutError(f"slot {self.slots[index]} holds numbers, but no adapter was put into it")
        return spec

    def extract(self, slot: int) -> Adapter:
        """The adapter in a slot, as a value of its own that shares no memory with the bank. Raises SlotError."""
        flat, basis = self.take(slot), self.basis
        given = basis if basis is not None and basis.key.sha256 else None
        sha256 = "" if basis is None else basis.sha256
        spec = self.spec_of(self._index(slot))
        if spec.hash_size is None:
            return Adapter(spec, self.layout, flat, sha256, given)
        hashing = hashing_of(spec, self.layout)
        return Adapter(spec, hashing.layout, hashing.fold(flat), sha256, given)

    def free_slot(self) -> int:
        """An empty slot; where there is none, the bank grows to twice its size. A trainable bank does not grow."""
        empty = next((i for i in range(self.num_slots) if i not in self.occupied), None)
        if empty is None:
            empty = self.num_slots
            self._grow(self.num_slots)
        return self.slots[empty]

    def layer(self, site: Site, base: BaseLayer) -> LayerBank:
        """The share of one layer, its trained factors as parameters that are columns of `flat`."""
        parent = site.name.rpartition(".")[0]
        shared = self._shared.setdefault((parent, site.in_features), SharedInput())
        layer = LayerBank(self, site, base, shared, self._frozen(site, base))
        for letter in self.layout.method.trained:
            layer.register_parameter(letter, self._parameter(self.layout.entries[f"{site.name}.{letter}"]))
        self.layers[site.name] = layer
        return layer

    def head(self, name: str) -> HeadBank:
        """The share of one task head."""
        head = HeadBank(self, name)
        for key, _ in self.layout.head:
            if key.startswith(name + "."):
                entry = self.layout.entries[key]
                head.register_parameter(key[len(name) + 1 :].replace(".", "/"), self._parameter(entry))
        self.heads[name] = head
        return head

    def takes(self, layout: Layout, basis_sha256: str) -> bool:
        """Whether an adapter of that layout and basis is of this bank's."""
        known = self.basis is None or basis_sha256 in ("", self.basis.sha256)
        return known and self._is_alike(layout)

    def put(self, slot: int, adapter: Adapter, norms: Mapping[str, Tensor] | None = None) -> None:
        """Loads an adapter into a slot; norms: of norms_of(), where they are known already.

        Raises SlotError, LayoutError or BasisError, with nothing changed.
        """
        index = self._index(slot)
        if not self._is_alike(adapter.layout):
            raise LayoutError(
                f"slot {slot} is of {self._shown(self.layout)}, the adapter is of {self._shown(adapter.layout)}: "
                "inject() it into a bank of its own"
            )
        if self.basis is not None and adapter.basis_sha256 != self.basis.sha256:
            adapter.basis()  # raises with both digests where they disagree
        if self.spec is not None:
            check_same_hash(self.spec, adapter.spec)
        self._write(index, adapter.expanded)
        self._specs[index] = adapter.spec
        for name, norm in (norms or {}).items():
            self.layers[name].keep_norm(index, norm)
        self._refresh(index)

    @property
    def hashing(self) -> Hashing | None:
        """What makes the letters of every slot, where the bank's spec has a hash."""
        spec = self.spec
        return None if spec is None or spec.hash_size is None else hashing_of(spec, self.layout)

    @property
    def num_trained(self) -> int:
        """The numbers that a slot trains: fewer than it holds where a hash makes them."""
        return (self.layout if self.hashing is None else self.hashing.layout).num_params

    def memory(self) -> NDArray[np.float32] | None:
        """All rows, (num_slots, num_params), to be filled before settle(); None where they aren't fp32 on the CPU."""
        is_plain = self._is_whole() and self.flat.device.type == "cpu" and self.flat.dtype == torch.float32
        return self.flat.detach().numpy() if is_plain else None

    def empty_row(self, slot: int, memory: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """An empty slot's row of memory(), None where there is none, or an adapter in it. Raises SlotError."""
        index = self._index(slot)
        return None if memory is None or index in self.occupied else memory[index]

    def settle(self, slot: int, spec: AdapterSpec) -> None:
        """Says that the row of an empty slot now holds an adapter of that spec, of this bank's layout and basis."""
        index = self._index(slot)
        self._settle(index)
        self._specs[index] = spec
        self._refresh(index)

    def norms_of(self, adapter: Adapter) -> dict[str, Tensor]:
        """‖W + ΔW‖ of each row of every layer by name, fp32; no slot is read or written."""
        tensors, letters = adapter.tensors, self.layout.method.trained
        own = {name: {k: tensors[f"{name}.{k}"].to(self.flat) for k in letters} for name in self.layers}
        return {name: layer.norm_of(own[name]) for name, layer in self.layers.items()}

    def take(self, slot: int) -> Tensor:
        """The trained numbers of a slot, (num_params,) fp32 on the CPU, a copy. Raises SlotError for an empty slot."""
        index = self._index(slot)
        if index not in self.occupied:
            self.table.check(slot)
        row = torch.empty(self.layout.num_params)
        for entry, parameter in self._parameters():
            row[entry.offset : entry.offset + entry.size] = parameter.detach()[index].flatten().float().cpu()
        return row

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        index = self._index(slot)
        self._write(index, torch.zeros(self.layout.num_params))
        self.occupied.discard(index)
        self._specs.pop(index, None)
        self._refresh(index)

    def norm_rows(self, site: str) -> Tensor:
        """row_norm of every slot in one layer, (slots, out)."""
        return self.layers[site].norm_rows()

    def _refresh(self, index: int) -> None:
        for layer in self.layers.values() if "m" in self.layout.method.trained else ():  # others keep no norms
            layer.refresh(index)

    def start(self, slot: int, head: Mapping[str, Tensor]) -> None:
        """Makes a slot a fresh adapter of the bank's spec, which is the identity; the head starts as given."""
        index = self._index(slot)
        spec = self.spec_of(index)
        row = torch.zeros(self.layout.num_params)
        for entry in (entry for stack in self.layout.stacks for entry in stack.entries):
            value = initial(entry, spec) if entry.letter else head[entry.key].detach().float().cpu()
            row[entry.offset : entry.offset + entry.size] = value.flatten()
        self._write(index, row)
        self._start_magnitudes(index)

    def gradients(self) -> Tensor:
        """Where the backward pass adds every slot's gradients from now on: (num_slots, num_params), zero, beside flat.

        Raises LayoutError for a bank whose parameters were moved after inject().
        """
        if not self._is_whole():
            raise LayoutError("the model was moved after inject(): move it first, so that a slot is one row of memory")
        grads = torch.zeros_like(self.flat)
        for entry, parameter in self._parameters():
            parameter.grad = torch.unflatten(grads[:, entry.offset : entry.offset + entry.size], 1, entry.shape)
        return grads

    def tie_gradients(self) -> None:
        """Projects gradients onto what a hash can follow; before the norm of a step is taken."""
        if self.hashing is not None:
            parts = [(entry, p.grad) for entry, p in self._parameters() if p.grad is not None]
            self.hashing.tie_parts(parts, torch.zeros_like(self.flat))

    def _start_magnitudes(self, index: int) -> None:
        for layer in self.layers.values():
            for letter in self.layout.method.trained:
                if self.layout.method.factors[letter].init == ROW_NORM:
                    with torch.no_grad():
                        getattr(layer, letter)[index] = layer.row_norm(index)
        self.version += 1
        self._written[index] = self.version

    def _frozen(self, site: Site, base: BaseLayer) -> dict[str, Tensor]:
        """The matrices of one layer that are neither trained nor shared, and never stored."""
        return {k: self._copies.of(t) for k, t in frozen_factors(self.layout, site, base).items()}

    def _write(self, index: int, row: Tensor) -> None:
        with torch.no_grad():
            if self._is_whole() and self.flat.device == row.device and self.flat.dtype == row.dtype:
                # torch would wake its threads for a copy of this size, which takes longer than the copy
                np.copyto(self.flat.numpy()[index], row.numpy())
            else:  # on another device, or moved after inject(), so that each parameter is a storage of its own
                for entry, parameter in self._parameters():
                    parameter[index].copy_(row[entry.offset : entry.offset + entry.size].view(entry.shape))
        self._settle(index)

    def _settle(self, index: int) -> None:
        self.occupied.add(index)
        self.version += 1
        self._written[index] = self.version

    def _is_alike(self, layout: Layout) -> bool:
        if layout is self._accepted:
            return True
        is_alike = layout.expanded.key() == self.layout.key()
        self._accepted = layout if is_alike else self._accepted
        return is_alike

    def _grow(self, more: int) -> None:
        if self.trainable:
            raise SlotError(
                f"all {self.num_slots} slots are taken, and a trainable bank does not grow: inject more slots"
            )
        rows = torch.stack([self.take(slot) for slot in self.slots]) if self.occupied else self.flat
        shape = (self.num_slots + more, self.layout.num_params)
        self.flat = zeros(shape, device=self._device(), dtype=self.dtype)
        self.flat[: len(rows)] = rows
        for entry, parameter in self._parameters():
            parameter.data = self._columns(entry)
        self.slots += tuple(self.table.add(self, more))
        self.version += 1

    def _device(self) -> torch.device:
        return self._owned(next(iter(self.layout.entries.values()))).device

    def _is_whole(self) -> bool:
        entry = next(iter(self.layout.entries.values()))
        at = self.flat.data_ptr() + entry.offset * self.flat.element_size()
        return self._owned(entry).data_ptr() == at

    def _parameters(self) -> list[tuple[Entry, nn.Parameter]]:
        return [(entry, self._owned(entry)) for entry in self.layout.entries.values()]

    def _owned(self, entry: Entry) -> nn.Parameter:
        if entry.letter:
            return getattr(self.layers[entry.site], entry.letter)  # type: ignore[no-any-return]
        name, head = next((n, h) for n, h in self.heads.items() if entry.key.startswith(n + "."))
        return head.get_parameter(entry.key[len(name) + 1 :].replace(".", "/"))

    def _parameter(self, entry: Entry) -> nn.Parameter:
        """The columns of an entry; layers that have it in common get the same parameter, and so one gradient."""
        made = nn.Parameter(self._columns(entry), requires_grad=self.trainable)
        return self._tied.setdefault(entry.offset, made) if entry.letter in self.layout.method.tied else made

    def _columns(self, entry: Entry) -> Tensor:
        columns = self.flat[:, entry.offset : entry.offset + entry.size]
        return torch.unflatten(columns, 1, entry.shape)

    def _index(self, slot: int) -> int:
        index = self.table.index(slot, self)
        if index is None:
            raise SlotError(f"slot {slot} is not of this bank, whose slots are {self.first} to {self.slots[-1]}")
        return index

    def _shown(self, layout: Layout) -> str:
        ranks = sorted({site.rank for site in layout.sites})
        return (
            f"{layout.method.name} of rank {', '.join(map(str, ranks))} on {len(layout.sites)} layers ({layout.basis})"
        )
