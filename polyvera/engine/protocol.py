"""GenerationEngine and EmbeddingEngine: all that a server may ask, of an engine in its process or of several."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from torch import Tensor

from polyvera.engine.embedding.request import Classes
from polyvera.engine.generation.request import Request
from polyvera.engine.limits import Limits
from polyvera.engine.stats import EngineStats
from polyvera.model.pooling import Pooling
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry


class ServedEngine(Protocol):
    """What every engine has while it runs.

    model: with the shapes of the base, if not its weights. failed: the error that ended it. limits: with all numbers.
    """

    model: Any
    tokenizer: Any
    registry: Registry | None
    limits: Limits
    max_context: int
    failed: BaseException | None

    @property
    def fingerprint(self) -> str:
        """A short name of the base's weights."""

    @property
    def generation(self) -> GenerationEngine | None:
        """The same engine, if it generates text."""

    @property
    def embedding(self) -> EmbeddingEngine | None:
        """The same engine, if it gives vectors and classes."""

    def stats(self) -> EngineStats:
        """What runs, waits and is resident. May wait for other processes."""

    def preload(self, ref: AdapterRef, *, pin: bool = False, timeout_s: float = 60.0) -> None:
        """Makes an adapter resident, and keeps it so where pin; returns when it is. Raises as its load does."""

    def pin(self, ref: AdapterRef) -> None:
        """Makes an adapter resident for good."""

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it."""

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""

    def stop(self) -> None:
        """Cancels what is left."""


class GenerationEngine(ServedEngine, Protocol):
    """What generates text: a Generator, or replicas of one."""

    def submit(self, request: Request) -> Request:
        """Asks for one answer; request.on_output gets every part of it, in another thread, and must not block.

        Raises SamplingError, BusyError, ClosedError. May wait for other processes.
        """

    def cancel(self, request: Request) -> None:
        """Ends a request at the next step, if it has not ended."""


class EmbeddingEngine(ServedEngine, Protocol):
    """What gives vectors and classes: an Embedder, or replicas of one."""

    @property
    def pooling(self) -> Pooling:
        """How a text's hidden states become its vector."""

    def embed(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Tensor]:
        """Token rows to vectors, (texts, width) in fp32. Raises SamplingError, ServeError, BusyError, ClosedError."""

    def classify(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Classes]:
        """Token rows to the adapter's classes. Raises as embed(), and ServeError where there is no head."""
