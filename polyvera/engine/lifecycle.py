"""AdapterEngine: a core in a thread of its own, and what other threads ask of it between two steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from threading import Event, Thread
from time import monotonic
from typing import Any, Protocol

import torch

from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.generation.request import CANCELLED, FAILED
from polyvera.engine.openmp import release
from polyvera.engine.request_queue import RequestQueue
from polyvera.engine.stats import EngineStats
from polyvera.errors import BusyError, ClosedError, PolyveraError, ServeError
from polyvera.store.reference import AdapterRef

log = logging.getLogger(__name__)
IDLE_S = 1.0


class Steps(Protocol):
    """What a runner runs. stats may be read by any thread."""

    stats: EngineStats

    @property
    def is_busy(self) -> bool:
        """Whether a request has come and has not been told its end."""

    def step(self) -> bool:
        """One step; whether there was anything to compute. What it raises ends the runner."""

    def end_all(self, finish_reason: str, error: PolyveraError | None = None) -> None:
        """Ends every request, those that wait too."""


class AdapterEngine:
    """Steps in a thread, from start() to stop(). failed: the error that ended them.

    The thread has no gradients. All methods but start() and stop() are for any thread.
    """

    def __init__(self, queue: RequestQueue[Any]) -> None:
        self.failed: BaseException | None = None
        self._queue = queue
        self._is_stopping = False
        self._thread: Thread | None = None

    @property
    def is_started(self) -> bool:
        """Whether it was ever started."""
        return self._thread is not None

    def start(self, core: Steps, adapters: AdapterCache, within: Callable[[], AbstractContextManager[Any]]) -> None:
        """Begins to step, inside the context that `within` makes in the thread."""
        self._core, self._adapters, self._within = core, adapters, within
        self._queue.is_open = True
        release()  # of the caller, who has just tried the model
        self._thread = Thread(target=self._run, name="polyvera-engine", daemon=True)
        self._thread.start()

    def preload(self, ref: AdapterRef, *, pin: bool, timeout_s: float) -> None:
        """Makes an adapter resident, and keeps it so where pin; returns when it is. Raises as its load does."""
        done: Future[None] = Future()

        def job() -> bool:
            try:
                is_over = done.cancelled() or self._acquire_once(ref, pin)
            except PolyveraError as error:
                if done.set_running_or_notify_cancel():
                    done.set_exception(error)
                return True
            if is_over and done.set_running_or_notify_cancel():
                done.set_result(None)
            return is_over

        self._queue.do(job)
        try:
            done.result(timeout_s)
        except TimeoutError:
            if done.cancel():
                raise BusyError(
                    f"{ref} is not resident after {timeout_s:g} s: every slot is in use or pinned"
                ) from None
            done.result()

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""
        self._queue.do(lambda: self._adapters.pin(ref, False))

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it."""
        self._queue.do(lambda: self._adapters.evict(ref))

    def stats(self) -> EngineStats:
        """What runs and waits, as it was after the last step, and what is resident."""
        return replace(self._core.stats, resident=self._adapters.snapshot())  # thousands: not at every step

    def drain(self, timeout_s: float) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        self._queue.close()
        end, pause = monotonic() + timeout_s, Event()
        while self._thread is not None and monotonic() < end and self._core.is_busy and self.failed is None:
            pause.wait(0.01)
        return self._thread is None or not self._core.is_busy

    def stop(self) -> bool:
        """Cancels what is left, and ends the thread; whether it ran until now."""
        self._queue.close()
        if self._thread is None or self._is_stopping:
            return False
        self._is_stopping = True
        self._queue.wake.set()
        self._thread.join()
        self._adapters.close()
        return True

    def _acquire_once(self, ref: AdapterRef, pin: bool) -> bool:
        """In the thread: whether an adapter is resident, and pinned where asked."""
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
            stack.enter_context(self._within())
            try:
                while not self._is_stopping:
                    if not self._core.step():
                        self._queue.wake.wait(IDLE_S)
                        self._queue.wake.clear()
                self._core.end_all(CANCELLED)
            except BaseException as error:
                log.exception("the engine has stopped")
                self.failed = error
                self._queue.close()
                self._core.end_all(FAILED, ServeError("the engine has stopped after an error of its own"))
