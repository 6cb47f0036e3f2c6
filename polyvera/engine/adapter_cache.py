"""AdapterCache: the bank as a cache. Adapters in slots of the model, over adapters in host memory, over the store.

Files are read and checked by threads of their own; a slot is written by the engine's thread between two steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.basis import Basis
from polyvera.adapter.fingerprint import check_fingerprint, fingerprint
from polyvera.adapter.inject import add_bank
from polyvera.adapter.layout import Layout
from polyvera.adapter.packed_linear import Packs
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.adapter.targets import output_of
from polyvera.engine.openmp import guest
from polyvera.errors import LayoutError, PolyveraError, StoreError
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

LOADERS = 2
# How long a step waits for a load that has just begun: a file is read in less, and who runs loses no more.
PATIENCE_S = 0.0015
Key = tuple[str, int]
Observe = Callable[[str, float], None]
Norms = Mapping[str, Tensor]
Check = Callable[[AdapterRef, Adapter], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in host memory: checked, its basis drawn.

    labels: of its classes, none where it has no head. norms: of its rows by layer, where it has magnitudes.
    """

    adapter: Adapter
    basis: Basis | None
    labels: tuple[str, ...] = ()
    norms: Norms | None = None

    @property
    def num_bytes(self) -> int:
        """Host memory of its numbers."""
        norms = 0 if self.norms is None else sum(t.nbytes for t in self.norms.values())
        return self.adapter.flat.nbytes + norms


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """A resident adapter, as it is told."""

    adapter: str
    num_bytes: int
    num_users: int
    is_pinned: bool


@dataclass(eq=False, slots=True)
class Entry:
    """A slot that is taken."""

    ref: AdapterRef
    slot: int
    bank: Bank
    labels: tuple[str, ...] = ()
    num_users: int = 0
    is_pinned: bool = False
    is_evicted: bool = False

    def snapshot(self) -> ResidentAdapter:
        """What is known of it at this moment."""
        layout, itemsize = self.bank.layout, self.bank.dtype.itemsize
        return ResidentAdapter(str(self.ref), layout.num_params * itemsize, self.num_users, self.is_pinned)


class AdapterCache:
    """Which adapter is in which slot. All methods but the loaders' are called by the engine's thread.

    num_slots: resident adapters at most, of whatever layout. slot_bytes: memory of one layout's slots at most.
    host_bytes: memory of loaded adapters outside the slots. packs: gets the frozen matrices. check: the labels of an
    adapter's classes; raises LayoutError for one that the batches cannot hold. wake: called when a load has ended.
    adapts_output: whether a bank has a share of the output layer.
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
        self._model, self._registry = model, registry
        self._slot_bytes, self._host_bytes = slot_bytes, host_bytes
        self._packs, self._check, self._observe, self._wake = packs, check, observe, wake
        self._output = output_of(model)
        self.adapts_output = False
        self._base = fingerprint(model)
        self._dtype = next(model.parameters()).dtype
        self._entries: OrderedDict[Key, Entry] = OrderedDict()  # the longest unused first
        self._taken: dict[int, Entry] = {}  # by slot, those that are dismissed and still used among them
        self._banks: dict[tuple[object, ...], Bank] = {}
        self._free: dict[int, list[int]] = {}
        self._host: OrderedDict[Key, LoadedAdapter] = OrderedDict()
        self._host_used_bytes = 0
        self._loading: dict[Key, float] = {}  # since when
        self._lock, self._is_open = Lock(), True
        self._failed: dict[Key, PolyveraError] = {}
        self._done: SimpleQueue[tuple[AdapterRef, LoadedAdapter | PolyveraError]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(LOADERS, "polyvera-load")

    def acquire(self, ref: AdapterRef | None) -> int | None:
        """The slot of an adapter, held until release(); None while it is being loaded, or no slot is free.

        Raises what the load raised, once to each that asks until the next load.
        """
        if ref is None:
            return BASE_SLOT
        entry = self._entries.get(_key(ref))
        if entry is None:
            entry = self._insert(ref)
            if entry is None:
                return None
        else:
            self.totals["hits"] += 1
        entry.num_users += 1
        self._entries.move_to_end(_key(ref))
        return entry.slot

    def release(self, slot: int) -> None:
        """Gives back what acquire() gave."""
        if slot == BASE_SLOT:
            return
        entry = self._taken[slot]
        entry.num_users -= 1
        if entry.is_evicted and not entry.num_users:
            self._clear(entry)

    def labels(self, slot: int) -> tuple[str, ...]:
        """The classes of an adapter that is held, none where it has no head."""
        return self._taken[slot].labels

    def prefetch(self, ref: AdapterRef | None) -> None:
        """Begins to load what will be acquired soon. Any thread."""
        if ref is not None and _key(ref) not in self._entries and _key(ref) not in self._host:
            self._load(ref)

    def collect(self) -> None:
        """Takes in what was loaded since the last step; an error is raised to all that ask until the next."""
        self._failed.clear()
        while not self._done.empty():
            self._take_in(*self._done.get_nowait())

    def wait_briefly(self) -> bool:
        """Waits a moment for loads that have just begun; whether one has ended."""
        has_ended = False
        while (left := self._newest() + PATIENCE_S - monotonic()) > 0:
            try:
                self._take_in(*self._done.get(timeout=left))
                has_ended = True
            except Empty:
                break
        return has_ended

    def pin(self, ref: AdapterRef, is_pinned: bool) -> None:
        """Keeps a resident adapter in its slot whatever comes, or no longer."""
        if _key(ref) in self._entries:
            self._entries[_key(ref)].is_pinned = is_pinned

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it first."""
        self._forget(_key(ref))
        entry = self._entries.pop(_key(ref), None)
        if entry is None:
            return
        entry.is_evicted = True
        if not entry.num_users:
            self._clear(entry)

    def snapshot(self) -> tuple[ResidentAdapter, ...]:
        """The resident adapters, the latest used first. Any thread: the seats are copied in one step."""
        leaving = [entry for entry in list(self._taken.values()) if entry.is_evicted]
        return tuple(entry.snapshot() for entry in (*leaving, *reversed(list(self._entries.values()))))

    @property
    def banks(self) -> list[Bank]:
        """The banks of the layouts that were ever resident."""
        return list(self._banks.values())

    def close(self) -> None:
        """Ends the loaders."""
        with self._lock:
            self._is_open = False
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- between the steps, in the engine's thread ---

    def _insert(self, ref: AdapterRef) -> Entry | None:
        key = _key(ref)
        if key in self._failed:
            raise self._failed[key]
        loaded = self._host.get(key)
        if loaded is None:
            self._load(ref)
            return None
        self._host.move_to_end(key)
        bank = self._bank(loaded)
        if _needs_norms(bank.layout) and loaded.norms is None:
            self._load(ref, loaded, bank)
            return None
        slot = self._free_slot(bank)
        if slot is None:
            return None
        bank.put(slot, loaded.adapter, loaded.norms)
        entry = self._entries[key] = self._taken[slot] = Entry(ref, slot, bank, loaded.labels)
        return entry

    def _bank(self, loaded: LoadedAdapter) -> Bank:
        layout = loaded.adapter.layout
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
            self.adapts_output = self.adapts_output or self._output in layout.site_names
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
        del self._entries[_key(oldest.ref)]
        self.totals["evictions"] += 1
        if oldest.bank is bank:  # put() writes over all of it
            del self._taken[oldest.slot]
            return oldest.slot
        self._clear(oldest)
        return self._free[id(bank)].pop()

    def _clear(self, entry: Entry) -> None:
        del self._taken[entry.slot]
        entry.bank.clear(entry.slot)
        self._free[id(entry.bank)].append(entry.slot)

    def _take_in(self, ref: AdapterRef, found: LoadedAdapter | PolyveraError) -> None:
        with self._lock:
            self._loading.pop(_key(ref), None)
        if isinstance(found, PolyveraError):
            self.totals["failed_loads"] += 1
            self._failed[_key(ref)] = found
        else:
            self._take(ref, found)

    def _take(self, ref: AdapterRef, loaded: LoadedAdapter) -> None:
        self.totals["loads"] += loaded.norms is not None or not _needs_norms(loaded.adapter.layout)
        self._forget(_key(ref))
        self._host[_key(ref)] = loaded
        self._host_used_bytes += loaded.num_bytes
        while self._host_used_bytes > self._host_bytes and len(self._host) > 1:
            self._forget(next(iter(self._host)))

    def _forget(self, key: Key) -> None:
        old = self._host.pop(key, None)
        self._host_used_bytes -= 0 if old is None else old.num_bytes

    # --- beside the steps, in a loader's thread ---

    def _load(self, ref: AdapterRef, loaded: LoadedAdapter | None = None, bank: Bank | None = None) -> None:
        with self._lock:
            if self._is_open and _key(ref) not in self._loading:
                self._loading[_key(ref)] = monotonic()
                self._pool.submit(self._loaded, ref, loaded, bank)

    def _newest(self) -> float:
        """When the latest load began that is under way, 0 where none is."""
        with self._lock:
            return max(self._loading.values(), default=0.0)

    @guest()
    def _loaded(self, ref: AdapterRef, loaded: LoadedAdapter | None, bank: Bank | None) -> None:
        started = monotonic()
        try:
            found: LoadedAdapter | PolyveraError = self._read(ref) if loaded is None else _with_norms(loaded, bank)
        except PolyveraError as error:
            found = error
        except Exception as error:
            found = StoreError(f"{ref} could not be loaded: {type(error).__name__}: {error}")
        self._observe("load_s", monotonic() - started)
        self._done.put((ref, found))
        self._wake()

    def _read(self, ref: AdapterRef) -> LoadedAdapter:
        if self._registry is None:
            raise StoreError(f"{ref} cannot be loaded: this engine has no store")
        adapter = self._registry.get(ref)
        check_fingerprint(adapter.base, self._base)
        labels = self._check(ref, adapter)
        return LoadedAdapter(adapter, adapter.basis(), labels)


def _with_norms(loaded: LoadedAdapter, bank: Bank | None) -> LoadedAdapter:
    assert bank is not None
    with torch.inference_mode():
        return replace(loaded, norms=bank.norms_of(loaded.adapter))


def _needs_norms(layout: Layout) -> bool:
    return "m" in layout.method.factors


def _key(ref: AdapterRef) -> Key:
    return ref.name, ref.version
