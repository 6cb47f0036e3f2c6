"""AdapterEngine: a model with adapters, from start() to stop(): its steps in a thread, and what others ask of them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.packed_linear import Packs
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.adapter_loader import Observe
from polyvera.engine.limits import Limits
from polyvera.engine.openmp import release
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.stats import EngineStats
from polyvera.engine.steps import EngineCore, Workload
from polyvera.errors import BusyError, ClosedError, EngineError, PolyveraError, ServeError
from polyvera.model.answer import Meaning
from polyvera.model.config import context_length
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
IDLE_S = 1.0
Q = TypeVar("Q")


class Runner(Protocol):
    """A model while an engine holds it."""

    def check(self, ref: AdapterRef, adapter: Any) -> tuple[Any, Meaning]:
        """An adapter as it is served, and what its head is for. Raises LayoutError where batches cannot hold it."""

    def undo(self) -> None:
        """Gives the model back as it was."""


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of while it runs. within: makes the context of its thread. undo: gives the model back."""

    workload: Workload
    adapters: AdapterCache
    within: Callable[[], AbstractContextManager[Any]]
    undo: Callable[[], None]


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """Where limits name none. context: at most so many tokens. chunks: on the CPU and elsewhere."""

    context: int
    cpu_chunk: int
    gpu_chunk: int

    def filled(self, given: Limits, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Limits:
        """Limits with all numbers. Raises ServeError for a context beyond the model's."""
        known = context_length(model, tokenizer)
        if given.max_context is not None and known is not None and given.max_context > known:
            raise ServeError(f"max_context={given.max_context}: {type(model).__name__} reads at most {known} tokens")
        chunk = given.chunk or (self.cpu_chunk if model.device.type == "cpu" else self.gpu_chunk)
        return replace(given, max_context=given.max_context or min(self.context, known or self.context), chunk=chunk)


class AdapterEngine(ABC, Generic[Q]):
    """Runs steps in a thread, from start() to stop(). All methods but these two may be called from any thread.

    model, tokenizer: of the base.
    registry: where adapters are loaded from; None serves the base alone.
    limits: rows, context, slots and memory; None takes the defaults.
    observe: called with a name ('load_s', 'queue_s', 'step_s') and a number of seconds.
    failed: the error that ended the thread, None while all is well.

    Raises ServeError for limits that the model does not allow.
    """

    defaults: ClassVar[DefaultLimits]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        registry: Registry | None = None,
        limits: Limits | None = None,
        observe: Observe = lambda name, seconds: None,
    ) -> None:
        self.model, self.tokenizer, self.registry = model, tokenizer, registry
        self.limits = self.defaults.filled(limits or Limits(), model, tokenizer)
        self.max_context = self.limits.max_context or 1
        self.failed: BaseException | None = None
        self._observe = observe
        self._queue: RequestQueue[Q] = RequestQueue(self.limits.max_waiting)
        self._is_stopping = False
        self._thread: Thread | None = None

    @abstractmethod
    def _take(self) -> EngineParts:
        """Takes the model. Raises ServeError for one that it doesn't fit."""

    @cached_property
    def fingerprint(self) -> str:
        """A short name of the base's weights."""
        return fingerprint(self.model)

    def start(self) -> Self:
        """Takes the model and starts to answer. Raises ServeError for a model that cannot be served."""
        if self._thread is not None:
            raise ClosedError("an engine is started once: make a new one")
        self._parts = self._take()
        self._adapters = self._parts.adapters
        self._core = EngineCore(self._parts.workload, self._adapters, self._queue, self.limits, self._observe)
        self._queue.is_open = True
        release()  # of the caller, who has just tried the model
        self._thread = Thread(target=self._run, name="polyvera-engine", daemon=True)
        self._thread.start()
        return self

    def preload(self, ref: AdapterRef, *, pin: bool = False, timeout_s: float = 60.0) -> None:
        """Makes an adapter resident, with pin for good; returns once it is.

        timeout_s: how long to wait for a slot. Raises what its load raises, BusyError after timeout_s, ClosedError.
        """
        done: Future[None] = Future()
        self._queue.do(lambda: self._try_preload(ref, pin, done))
        try:
            done.result(timeout_s)
        except TimeoutError:
            if done.cancel():
                raise BusyError(
                    f"{ref} is not resident after {timeout_s:g} s: every slot is in use or pinned"
                ) from None
            done.result()

    def pin(self, ref: AdapterRef) -> None:
        """Makes an adapter resident for good."""
        self.preload(ref, pin=True)

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""
        self._queue.do(lambda: self._adapters.pin(ref, False))

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it."""
        self._queue.do(lambda: self._adapters.evict(ref))

    def stats(self) -> EngineStats:
        """What runs, waits and is resident at this moment."""
        return EngineStats(num_slots=self.limits.num_slots) if self._thread is None else self._core.stats()

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        self._queue.close()
        end, pause = monotonic() + timeout_s, Event()
        while self._thread is not None and monotonic() < end and self._core.is_busy and self.failed is None:
            pause.wait(0.01)
        return self._thread is None or not self._core.is_busy

    def stop(self) -> None:
        """Cancels what is left, ends the thread, and gives the model back as it was."""
        self._queue.close()
        if self._thread is None or self._is_stopping:
            return
        self._is_stopping = True
        self._queue.wake.set()
        self._thread.join()
        self._adapters.close()
        self._parts.undo()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _cache(self, runner: Runner, packs: Packs) -> AdapterCache:
        """The adapters of this engine. packs: gets their frozen matrices."""
        return AdapterCache(
            self.model,
            self.registry,
            num_slots=self.limits.num_slots,
            slot_bytes=self.limits.slot_bytes,
            host_bytes=self.limits.host_bytes,
            packs=packs,
            check=runner.check,
            observe=self._observe,
            wake=self._queue.wake.set,
        )

    # --- in the thread ---

    def _try_preload(self, ref: AdapterRef, pin: bool, done: Future[None]) -> bool:
        """One try at every step; whether it was the last."""
        try:
            is_over = done.cancelled() or self._is_resident(ref, pin)
        except PolyveraError as error:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
            return True
        if is_over and done.set_running_or_notify_cancel():
            done.set_result(None)
        return is_over

    def _is_resident(self, ref: AdapterRef, pin: bool) -> bool:
        """Whether an adapter is resident by now, and pinned where asked."""
        if not self._queue.is_open:
            raise ClosedError("the engine is stopping: it loads no more adapters")
        slot = self._adapters.acquire(ref)
        if slot is None:
            return False
        if pin:
            self._adapters.pin(ref, True)
        self._adapters.release(slot)
        return True

    def _run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(self._parts.within())
            try:
                while not self._is_stopping:
                    if not self._core.step():
                        self._queue.wake.wait(IDLE_S)
                        self._queue.wake.clear()
                self._core.end_all(None)
            except BaseException as error:
                log.exception("the engine has stopped")
                self.failed = error
                self._queue.close()
                self._core.end_all(EngineError("the engine stopped because of an internal error"))
