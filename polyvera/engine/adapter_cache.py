"""AdapterCache: the bank as a cache. Adapters in slots of the model, over adapters in host memory, over the store.

A slot is written by the engine's thread between two steps; AdapterLoader reads the files beside them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from polyvera.adapter.bank import Bank
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import add_bank
from polyvera.adapter.packed_linear import Packs
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.adapter.targets import layers_behind_body
from polyvera.engine.adapter_loader import AdapterLoader, Check, Key, LoadedAdapter, Observe, key_of
from polyvera.errors import LayoutError, PolyveraError
from polyvera.model.answer import OF_TEXT, Meaning
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """A resident adapter. adapter: 'name@version'. num_users: requests that use it."""

    adapter: str
    num_bytes: int
    num_users: int
    is_pinned: bool


@dataclass(eq=False, slots=True)
class CacheEntry:
    """A slot in use, and what is known of its adapter."""

    ref: AdapterRef
    slot: int
    bank: Bank
    meaning: Meaning = OF_TEXT
    num_users: int = 0
    is_pinned: bool = False
    is_evicted: bool = False

    def snapshot(self) -> ResidentAdapter:
        """What is known of it at this moment."""
        layout, itemsize = self.bank.layout, self.bank.dtype.itemsize
        return ResidentAdapter(str(self.ref), layout.num_params * itemsize, self.num_users, self.is_pinned)


class AdapterCache:
    """Which adapter is in which slot. All methods but prefetch() and snapshot() are for the engine's thread.

    num_slots: resident adapters at most, of whatever layout. slot_bytes: memory of one layout's slots at most.
    host_bytes: memory of loaded adapters outside the slots. packs: gets the frozen matrices. check: an adapter as it is
    served, and the meaning of its head; raises LayoutError for one that the batches cannot hold. wake: called when a
    load has ended.
    adapts_output: whether a bank has a share of the output layer, or of one that makes the last hidden states for it.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: Registry | None,
        *,
        num_slots: int,
        slot_bytes: int,
        host_bytes: int,
        packs: Packs,
        check: Check,
        observe: Observe,
        wake: Callable[[], None],
    ) -> None:
        self.num_slots, self.totals = num_slots, dict.fromkeys(("hits", "loads", "evictions", "failed_loads"), 0)
        self._model = model
        self._slot_bytes, self._host_bytes = slot_bytes, host_bytes
        self._packs = packs
        self._behind_body = layers_behind_body(model)
        self.adapts_output = False
        self._loader = AdapterLoader(registry, fingerprint(model), check=check, observe=observe, wake=wake)
        self._dtype = next(model.parameters()).dtype
        self._entries: OrderedDict[Key, CacheEntry] = OrderedDict()  # the longest unused first
        self._taken: dict[int, CacheEntry] = {}  # by slot, those that are dismissed and still used among them
        self._banks: dict[tuple[object, ...], Bank] = {}
        self._free: dict[int, list[int]] = {}
        self._host: OrderedDict[Key, LoadedAdapter] = OrderedDict()
        self._host_used_bytes = 0
        self._failed: dict[Key, PolyveraError] = {}

    def acquire(self, ref: AdapterRef | None) -> int | None:
        """The slot of an adapter, held until release(); None while it is being loaded, or no slot is free.

        Raises what the load raised, once to each that asks until the next load.
        """
        if ref is None:
            return BASE_SLOT
        entry = self._entries.get(key_of(ref))
        if entry is None:
            entry = self._insert(ref)
            if entry is None:
                return None
        else:
            self.totals["hits"] += 1
        entry.num_users += 1
        self._entries.move_to_end(key_of(ref))
        return entry.slot

    def release(self, slot: int) -> None:
        """Gives back what acquire() gave."""
        if slot == BASE_SLOT:
            return
        entry = self._taken[slot]
        entry.num_users -= 1
        if entry.is_evicted and not entry.num_users:
            self._clear(entry)

    def meaning(self, slot: int) -> Meaning:
        """What the outputs of the head in a slot stand for, without labels if it has none."""
        return self._taken[slot].meaning

    def prefetch(self, ref: AdapterRef | None) -> None:
        """Starts to load what will be acquired soon. Any thread."""
        if ref is not None and key_of(ref) not in self._entries and key_of(ref) not in self._host:
            self._loader.load(ref)

    def collect(self) -> None:
        """Takes in the loads that ended since the last step; an error is raised to all who ask until the next load."""
        self._failed.clear()
        self._take_in(self._loader.finished())

    def wait_briefly(self) -> bool:
        """Waits a moment for loads that have just started; whether one has ended."""
        found = self._loader.wait_briefly()
        self._take_in(found)
        return bool(found)

    def pin(self, ref: AdapterRef, is_pinned: bool) -> None:
        """Keeps a resident adapter in its slot for good, or lets it go again."""
        if key_of(ref) in self._entries:
            self._entries[key_of(ref)].is_pinned = is_pinned

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it first."""
        self._forget(key_of(ref))
        entry = self._entries.pop(key_of(ref), None)
        if entry is None:
            return
        entry.is_evicted = True
        if not entry.num_users:
            self._clear(entry)

    def snapshot(self) -> tuple[ResidentAdapter, ...]:
        """The resident adapters, the latest used first. Any thread: the entries are copied in one step."""
        leaving = [entry for entry in list(self._taken.values()) if entry.is_evicted]
        return tuple(entry.snapshot() for entry in (*leaving, *reversed(list(self._entries.values()))))

    @property
    def banks(self) -> list[Bank]:
        """The banks of the layouts that were ever resident."""
        return list(self._banks.values())

    def close(self) -> None:
        """Ends the loader."""
        self._loader.close()

    # --- between the steps, in the engine's thread ---

    def _insert(self, ref: AdapterRef) -> CacheEntry | None:
        key = key_of(ref)
        if key in self._failed:
            raise self._failed[key]
        loaded = self._host.get(key)
        if loaded is None:
            self._loader.load(ref)
            return None
        self._host.move_to_end(key)
        bank = self._bank(loaded)
        if loaded.needs_norms:
            self._loader.load(ref, loaded, bank)
            return None
        slot = self._free_slot(bank)
        if slot is None:
            return None
        bank.put(slot, loaded.adapter, loaded.norms)
        entry = self._entries[key] = self._taken[slot] = CacheEntry(ref, slot, bank, loaded.meaning)
        return entry

    def _bank(self, loaded: LoadedAdapter) -> Bank:
        layout = loaded.adapter.layout.expanded
        key = (*layout.key(), loaded.adapter.basis_sha256)
        if key not in self._banks:
            row_bytes = max(1, layout.num_params * self._dtype.itemsize)
            num_slots = min(self.num_slots, self._slot_bytes // row_bytes)
            if num_slots < 1:
                raise LayoutError(
                    f"one slot of this adapter takes {row_bytes:,} bytes, and slot_bytes is {self._slot_bytes:,}"
                )
            with torch.inference_mode(False):  # a slot's versions are counted
                bank = add_bank(self._model, layout, num_slots, loaded.basis, dtype=self._dtype, any_classes=True)
            self._freeze(bank)
            self.adapts_output = self.adapts_output or not self._behind_body.isdisjoint(layout.site_names)
            self._banks[key], self._free[id(bank)] = bank, list(reversed(bank.slots))
        return self._banks[key]

    def _freeze(self, bank: Bank) -> None:
        if bank.basis is not None:
            for matrix in bank.basis.to(bank.flat.device, bank.dtype):
                self._packs.freeze(matrix)

    def _free_slot(self, bank: Bank) -> int | None:
        free = self._free[id(bank)]
        if free and len(self._taken) < self.num_slots:
            return free.pop()
        # Where this bank is full only its own slots help; where the count is reached, any does.
        idle = (s for s in self._entries.values() if not (s.num_users or s.is_pinned) and (free or s.bank is bank))
        oldest = next(idle, None)
        if oldest is None:
            return None
        del self._entries[key_of(oldest.ref)]
        self.totals["evictions"] += 1
        if oldest.bank is bank:  # put() writes over all of it
            del self._taken[oldest.slot]
            return oldest.slot
        self._clear(oldest)
        return self._free[id(bank)].pop()

    def _clear(self, entry: CacheEntry) -> None:
        del self._taken[entry.slot]
        entry.bank.clear(entry.slot)
        self._free[id(entry.bank)].append(entry.slot)

    def _take_in(self, found: list[tuple[AdapterRef, LoadedAdapter | PolyveraError]]) -> None:
        for ref, loaded in found:
            if isinstance(loaded, PolyveraError):
                self.totals["failed_loads"] += 1
                self._failed[key_of(ref)] = loaded
            else:
                self._keep(ref, loaded)

    def _keep(self, ref: AdapterRef, loaded: LoadedAdapter) -> None:
        self.totals["loads"] += not loaded.needs_norms
        self._forget(key_of(ref))
        self._host[key_of(ref)] = loaded
        self._host_used_bytes += loaded.num_bytes
        while self._host_used_bytes > self._host_bytes and len(self._host) > 1:
            self._forget(next(iter(self._host)))

    def _forget(self, key: Key) -> None:
        old = self._host.pop(key, None)
        self._host_used_bytes -= 0 if old is None else old.num_bytes
