"""Runner: a loop in a thread of its own, and what other threads ask of it between two steps."""

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

from polyvera.engine.adapter_cache import Residents
from polyvera.engine.generation.request import CANCELLED, FAILED
from polyvera.engine.openmp import release
from polyvera.engine.request_queue import Inbox
from polyvera.engine.stats import Stats
from polyvera.errors import BusyError, ClosedError, PolyveraError, ServeError
from polyvera.store.reference import AdapterRef

log = logging.getLogger(__name__)
IDLE_S = 1.0


class Steps(Protocol):
    """What a runner runs. stats may be read by any thread."""

    stats: Stats

    @property
    def is_busy(self) -> bool:
        """Whether a request has come and has not been told its end."""

    def step(self) -> bool:
        """One step; whether there was anything to compute. What it raises ends the runner."""

    def end_all(self, finish: str, problem: PolyveraError | None = None) -> None:
        """Ends every request, those that wait too."""


class Runner:
    """Steps in a thread, from start() to stop(). failed: the error that ended them.

    The thread has no gradients. All methods but start() and stop() are for any thread.
    """

    def __init__(self, inbox: Inbox[Any]) -> None:
        self.failed: BaseException | None = None
        self._inbox = inbox
        self._is_stopping = False
        self._thread: Thread | None = None

    @property
    def is_started(self) -> bool:
        """Whether it was ever started."""
        return self._thread is not None

    def start(self, loop: Steps, residents: Residents, within: Callable[[], AbstractContextManager[Any]]) -> None:
        """Begins to step, inside the context that `within` makes in the thread."""
        self._loop, self._residents, self._within = loop, residents, within
        self._inbox.is_open = True
        release()  # of the caller, who has just tried the model
        self._thread = Thread(target=self._run, name="polyvera-engine", daemon=True)
        self._thread.start()

    def preload(self, ref: AdapterRef, *, pin: bool, timeout_s: float) -> None:
        """Makes an adapter resident, and keeps it so where pin; returns when it is. Raises as its load does."""
        done: Future[None] = Future()

        def job() -> bool:
            try:
                is_over = done.cancelled() or self._held_once(ref, pin)
            except PolyveraError as error:
                if done.set_running_or_notify_cancel():
                    done.set_exception(error)
                return True
            if is_over and done.set_running_or_notify_cancel():
                done.set_result(None)
            return is_over

        self._inbox.do(job)
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
        self._inbox.do(lambda: self._residents.pin(ref, False))

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out; rows that use it finish with it."""
        self._inbox.do(lambda: self._residents.dismiss(ref))

    def stats(self) -> Stats:
        """What runs and waits, as it was after the last step, and what is resident."""
        return replace(self._loop.stats, resident=self._residents.told())  # thousands: not at every step

    def drain(self, timeout_s: float) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        self._inbox.close()
        end, pause = monotonic() + timeout_s, Event()
        while self._thread is not None and monotonic() < end and self._loop.is_busy and self.failed is None:
            pause.wait(0.01)
        return self._thread is None or not self._loop.is_busy

    def stop(self) -> bool:
        """Cancels what is left, and ends the thread; whether it ran until now."""
        self._inbox.close()
        if self._thread is None or self._is_stopping:
            return False
        self._is_stopping = True
        self._inbox.wake.set()
        self._thread.join()
        self._residents.close()
        return True

    def _held_once(self, ref: AdapterRef, pin: bool) -> bool:
        """In the thread: whether an adapter is resident, and pinned where asked."""
        if not self._inbox.is_open:
            raise ClosedError("the engine is stopping: it loads no more adapters")
        slot = self._residents.acquire(ref)
        if slot is None:
            return False
        if pin:
            self._residents.pin(ref, True)
        self._residents.release(slot)
        return True

    def _run(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(self._within())
            try:
                while not self._is_stopping:
                    if not self._loop.step():
                        self._inbox.wake.wait(IDLE_S)
                        self._inbox.wake.clear()
                self._loop.end_all(CANCELLED)
            except BaseException as error:
                log.exception("the engine has stopped")
                self.failed = error
                self._inbox.close()
                self._loop.end_all(FAILED, ServeError("the engine has stopped after an error of its own"))
