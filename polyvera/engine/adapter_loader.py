"""AdapterLoader: adapters are read and checked by threads of their own, beside the engine's steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic

import torch
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.basis import Basis
from polyvera.adapter.fingerprint import agrees
from polyvera.engine.openmp import guest
from polyvera.errors import FingerprintError, PolyveraError, StoreError
from polyvera.model.answer import OF_TEXT, Meaning
from polyvera.model.unread import check_read
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

LOADERS = 2
# How long a step waits for a load that has just begun: a file is read in less, and running rows lose no more.
PATIENCE_S = 0.0015
Key = tuple[str, int]
Observe = Callable[[str, float], None]
Check = Callable[[AdapterRef, Adapter], tuple[Adapter, Meaning]]


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in host memory: checked, its basis drawn.

    meaning: of its head, without labels where it has none. norms: of its rows by layer, where it has magnitudes.
    """

    adapter: Adapter
    basis: Basis | None
    meaning: Meaning = OF_TEXT
    norms: Mapping[str, Tensor] | None = None

    @property
    def needs_norms(self) -> bool:
        """Whether it has magnitudes whose norms have not been computed."""
        return self.norms is None and "m" in self.adapter.layout.method.factors

    @property
    def num_bytes(self) -> int:
        """Host memory of its numbers."""
        norms = 0 if self.norms is None else sum(t.nbytes for t in self.norms.values())
        adapter = self.adapter
        letters = 0 if adapter.layout.hash_size is None else adapter.expanded.nbytes
        return adapter.flat.nbytes + letters + norms


Loaded = tuple[AdapterRef, LoadedAdapter | PolyveraError]


class AdapterLoader:
    """Loads of a store, each adapter once at a time. load() is for any thread.

    base: the fingerprint of the model. check: an adapter as it is served, and the meaning of its head; raises
    LayoutError for one that the batches cannot hold. wake: called when a load has ended.
    """

    def __init__(
        self, registry: Registry | None, base: str, *, check: Check, observe: Observe, wake: Callable[[], None]
    ) -> None:
        self._registry, self._base = registry, base
        self._check, self._observe, self._wake = check, observe, wake
        self._loading: dict[Key, float] = {}  # since when
        self._lock, self._is_open = Lock(), True
        self._done: SimpleQueue[Loaded] = SimpleQueue()
        self._pool = ThreadPoolExecutor(LOADERS, "polyvera-load")

    def load(self, ref: AdapterRef, loaded: LoadedAdapter | None = None, bank: Bank | None = None) -> None:
        """Starts to load an adapter, unless that is under way; computes the norms of one that is loaded."""
        with self._lock:
            if self._is_open and key_of(ref) not in self._loading:
                self._loading[key_of(ref)] = monotonic()
                self._pool.submit(self._run, ref, loaded, bank)

    def finished(self) -> list[Loaded]:
        """The loads that have ended since the last call, each an adapter or the error."""
        return [self._taken(self._done.get_nowait()) for _ in range(self._done.qsize())]

    def wait_briefly(self) -> list[Loaded]:
        """The same, after a moment for loads that have just started."""
        found: list[Loaded] = []
        while (left := self._newest() + PATIENCE_S - monotonic()) > 0:
            try:
                found.append(self._taken(self._done.get(timeout=left)))
            except Empty:
                break
        return found

    def close(self) -> None:
        """Ends the threads."""
        with self._lock:
            self._is_open = False
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _taken(self, found: Loaded) -> Loaded:
        with self._lock:
            self._loading.pop(key_of(found[0]), None)
        return found

    def _newest(self) -> float:
        """When the latest load began that is under way, 0 where none is."""
        with self._lock:
            return max(self._loading.values(), default=0.0)

    @guest()
    def _run(self, ref: AdapterRef, loaded: LoadedAdapter | None, bank: Bank | None) -> None:
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
            raise StoreError(f"{ref} cannot be loaded: this engine was started without a registry")
        adapter = self._registry.get(ref)
        check_read(adapter, str(ref))
        if not agrees(adapter.base, self._base):
            raise FingerprintError(f"{ref} is an adapter of another base model, and cannot be served with this one")
        adapter, meaning = self._check(ref, adapter)
        return LoadedAdapter(adapter, adapter.basis(), meaning)


def key_of(ref: AdapterRef) -> Key:
    """What distinguishes one adapter from another."""
    return ref.name, ref.version


def _with_norms(loaded: LoadedAdapter, bank: Bank | None) -> LoadedAdapter:
    assert bank is not None
    with torch.inference_mode():
        return replace(loaded, norms=bank.norms_of(loaded.adapter))
