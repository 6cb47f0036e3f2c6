"""ReplicaPool: several engines of one model, each in a process of its own, with the methods of one engine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor
from xxhash import xxh64_intdigest

from polyvera.engine.adapter_loader import Observe
from polyvera.engine.embedding.request import Classes, EncodeRequest
from polyvera.engine.generation.request import Request
from polyvera.engine.limits import Limits
from polyvera.engine.stats import EngineStats
from polyvera.engine.trial import check_served
from polyvera.errors import BusyError, ClosedError, EngineError, PolyveraError, ServeError
from polyvera.model.config import AUTO_TASK, CAUSAL_LM, kind_to_load
from polyvera.model.load import locate
from polyvera.model.pooling import Pooling
from polyvera.model.shapes import meta_model, read_config
from polyvera.model.task import kind_for
from polyvera.model.tokenizer import tokenizer_of
from polyvera.replicas.merged_stats import merged_stats
from polyvera.replicas.messages import Ready, Start
from polyvera.replicas.replica_process import STATS_S, AnyRequest, ReplicaProcess
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

log = logging.getLogger(__name__)
# A replica that ends MAX_DEATHS times, each less than QUICK_S after it was ready, is given up.
MAX_DEATHS, QUICK_S = 3, 60.0
BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
# A replica is checked every WATCH_S, and killed when it has made no progress for STUCK_S.
WATCH_S, STUCK_S = 5.0, 120.0
ANSWER_S = 10.0
CommandName = Literal["preload", "pin", "unpin", "evict"]


class ReplicaPool:
    """Several replicas used as one engine: a GenerationEngine, or an EmbeddingEngine if the model is an encoder.

    Each replica serves every adapter, in batches of its own. A request goes to the one with the fewest open requests;
    on a tie, to the one that the adapter and tenant always prefer, where the adapter is resident and prompt prefixes
    are cached. A replica that dies or is stuck is restarted while the others continue. One that dies MAX_DEATHS times
    in quick succession is given up, and `failed` is the reason.

    model, task: as load_base() takes them. The attribute `model` has shapes and no weights.
    registry: where adapters are loaded from, None for the base alone; replicas get its URL.
    limits: max_waiting holds for all replicas together, everything else for each. After start(), the attribute `limits`
        has the rows of all together.
    observe: called with the name and the seconds of what the engines measure.
    num: how many replicas, at least 1.
    pooling: of an encoder, after start().

    Raises RecipeError or SpecError for a model that does not exist or cannot be served, ServeError for num < 1.
    """

    def __init__(
        self,
        model: str,
        registry: Registry | None = None,
        limits: Limits | None = None,
        observe: Observe = lambda name, seconds: None,
        *,
        num: int,
        task: str = AUTO_TASK,
    ) -> None:
        source = locate(model)
        config = read_config(source)
        if num < 1:
            raise ServeError(f"num={num} must be at least 1")
        self._kind = kind_to_load(config, kind_for(task))
        check_served(next(iter(config.architectures or ()), type(config).__name__), self._kind)
        self.model: Any = meta_model(config, kind=self._kind)
        self.tokenizer = tokenizer_of(source)
        self.registry, self.limits, self.num = registry, limits or Limits(), num
        self.failed: BaseException | None = None
        self.fingerprint, self.max_context, self.num_tokens, self.pooling = "", 0, 0, Pooling()
        self._given = Start(model, None if registry is None else registry.url, self.limits, task=task)
        self._observe = observe
        self._lock, self._stopping = Lock(), Event()
        self._replicas: dict[int, ReplicaProcess] = {}
        self._supervisors: list[Thread] = []
        self._pinned: set[AdapterRef] = set()
        self._past, self._is_open = Counter[str](), False

    def start(self) -> ReplicaPool:
        """Starts the processes; returns once all are ready. Raises the error of the first that fails."""
        if self._supervisors:
            raise ClosedError("this pool was started before: make a new one")
        firsts = [Future[Ready]() for _ in range(self.num)]
        for number, (given, first) in enumerate(zip(_given(self._given, self.num), firsts, strict=True)):
            supervisor = Thread(
                target=self._supervise, args=(number, given, first), name="polyvera-supervisor", daemon=True
            )
            self._supervisors.append(supervisor)
            supervisor.start()
        try:
            for first in wait(firsts, return_when=FIRST_EXCEPTION).done:
                told = first.result()
        except BaseException:
            self.stop()
            raise
        self.limits = replace(told.limits, max_rows=self.num * told.limits.max_rows)
        self.max_context = told.limits.max_context or 0
        self.fingerprint, self.num_tokens = told.fingerprint, told.num_tokens
        self.pooling = told.pooling or self.pooling
        self.model.to(getattr(torch, told.dtype))
        self._is_open = True
        return self

    def submit(self, request: Request) -> Request:
        """As Generator.submit; blocks until a replica accepts it. on_output is called in a thread of the pool."""
        self._place(request).submit(request)
        return request

    def embed(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Tensor]:
        """As Embedder.embed; blocks until a replica accepts the request."""
        return self._encode(EncodeRequest(rows, adapter, tenant, is_classes=False, weight=weight))

    def classify(
        self, rows: Sequence[Sequence[int]], adapter: AdapterRef | None = None, *, tenant: str = "", weight: float = 1.0
    ) -> Future[Classes]:
        """As Embedder.classify; blocks until a replica accepts the request."""
        return self._encode(EncodeRequest(rows, adapter, tenant, is_classes=True, weight=weight))

    def cancel(self, request: AnyRequest) -> None:
        """Cancels a request at the next step, if it has not ended; on_output gets its end."""
        for replica in self._all():
            replica.cancel(request)

    def preload(self, ref: AdapterRef, *, pin: bool = False, timeout_s: float = 60.0) -> None:
        """Makes an adapter resident in every replica; with pin, for good. Raises what its load raises."""
        if not pin:
            self._command("preload", ref, timeout_s)
            return
        self._pinned.add(ref)
        try:
            self._command("pin", ref, timeout_s)
        except PolyveraError:
            self._pinned.discard(ref)
            raise

    def pin(self, ref: AdapterRef) -> None:
        """Makes an adapter resident for good, in restarted replicas, too."""
        self.preload(ref, pin=True)

    def unpin(self, ref: AdapterRef) -> None:
        """Lets a pinned adapter go when its slot is needed."""
        self._pinned.discard(ref)
        self._command("unpin", ref)

    def evict(self, ref: AdapterRef) -> None:
        """Takes an adapter out everywhere; rows that use it finish with it."""
        self._pinned.discard(ref)
        self._command("evict", ref)

    def stats(self) -> EngineStats:
        """The sum over all replicas; one that does not reply within STATS_S counts with its latest stats. Blocks."""
        replicas = self._all()
        _wait([replica.get_stats() for replica in replicas if replica.is_running], STATS_S)
        with self._lock:
            totals = Counter(self._past)
        for replica in replicas:
            totals.update({} if replica.last_stats is None else replica.last_stats.totals)
        return merged_stats([c.last_stats for c in replicas if c.is_running and c.last_stats is not None], totals)

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no new requests, and waits for those there; whether all of them ended in time."""
        self._is_open = False
        end, pause = monotonic() + timeout_s, Event()
        while self._num_open and monotonic() < end:
            pause.wait(0.01)
        return not self._num_open

    def stop(self) -> None:
        """Cancels what is left, and ends the processes."""
        self._is_open = False
        with self._lock:
            self._stopping.set()
        closing = [Thread(target=replica.close) for replica in self._all()]
        for thread in closing:
            thread.start()
        for thread in (*closing, *self._supervisors):
            thread.join()

    def __enter__(self) -> ReplicaPool:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def generation(self) -> ReplicaPool | None:
        """Itself, if its model generates text, else None."""
        return self if self._kind == CAUSAL_LM else None

    @property
    def embedding(self) -> ReplicaPool | None:
        """Itself, if its model is an encoder, else None."""
        return None if self._kind == CAUSAL_LM else self

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [replica.pid for replica in self._all()]

    @property
    def _num_open(self) -> int:
        return sum(replica.num_open for replica in self._all())

    def _all(self) -> list[ReplicaProcess]:
        with self._lock:
            return list(self._replicas.values())

    def _encode(self, request: EncodeRequest) -> Future[Any]:
        replica = self._place(request)
        request.done.add_done_callback(lambda done: replica.cancel(request) if done.cancelled() else None)
        replica.submit(request)
        return request.done

    def _place(self, request: AnyRequest) -> ReplicaProcess:
        """Reserves a replica for a request. Raises BusyError, ClosedError."""
        with self._lock:
            if not self._is_open:
                raise ClosedError("the server is stopping, or has stopped: it takes no new requests")
            taking = [replica for replica in self._replicas.values() if replica.is_accepting]
            if not taking:
                raise ClosedError("no replica runs at the moment: try again")
            num_open = sum(replica.num_open for replica in taking)
            if num_open >= len(taking) * self._given.limits.max_rows + self.limits.max_waiting:
                raise BusyError(f"{num_open} requests run and wait already, which is the maximum: try again later")
            replica = min(taking, key=lambda one: (one.num_open, _affinity(one.number, request)))
            replica.reserve(request)
            return replica

    def _command(self, name: CommandName, ref: AdapterRef, timeout_s: float = ANSWER_S) -> None:
        """Sends a command to every replica. Raises the first error of one that runs, ClosedError if none does."""
        running = [replica for replica in self._all() if replica.is_running]
        if not running:
            raise ClosedError("no replica runs at the moment: try again")
        asked = [(replica, replica.command(name, ref, timeout_s)) for replica in running]
        errors = [
            error for replica, done in asked if (error := _error(done, timeout_s + ANSWER_S)) and replica.is_running
        ]
        if errors:
            raise errors[0]

    # --- in a supervisor's thread ---

    def _supervise(self, number: int, given: Start, first: Future[Ready]) -> None:
        try:
            self._restart_until_stopped(number, given, first)
        except Exception as error:  # such as no more processes allowed
            log.exception("replica %d cannot be started", number)
            self.failed = error
            if not first.done():
                first.set_exception(EngineError(f"replica {number} cannot be started: {error}"))

    def _restart_until_stopped(self, number: int, given: Start, first: Future[Ready]) -> None:
        """Starts a replica, and restarts it when it ends, until the pool stops or it has died too often."""
        num_deaths = 0
        while (replica := self._launch(number, given)) is not None:
            since = self._run_once(replica, first)
            if self._stopping.is_set() or first.exception() is not None:
                return
            num_deaths = 1 if monotonic() - since >= QUICK_S else num_deaths + 1
            log.error("replica %d has ended, %d times in quick succession", number, num_deaths)
            if num_deaths >= MAX_DEATHS:
                self.failed = EngineError(f"replica {number} has ended {num_deaths} times in quick succession")
                return
            self._stopping.wait(min(BACKOFF_S * 4 ** (num_deaths - 1), MAX_BACKOFF_S))

    def _launch(self, number: int, given: Start) -> ReplicaProcess | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            old = self._replicas.get(number)
            if old is not None and old.last_stats is not None:
                self._past.update(old.last_stats.totals)
            replica = self._replicas[number] = ReplicaProcess(number, given, self._observe)
            return replica

    def _run_once(self, replica: ReplicaProcess, first: Future[Ready]) -> float:
        """Returns when a replica has ended: the time at which it was ready or failed to start."""
        try:
            ready = replica.ready.result()
            since = monotonic()
            for ref in list(self._pinned):
                with suppress(PolyveraError):  # removed from the store, or the replica has ended
                    replica.command("pin", ref, ANSWER_S).result()
            replica.accept()
            if not first.done():
                first.set_result(ready)
        except PolyveraError as error:
            since = monotonic()
            if not first.done():
                first.set_exception(error)
        _watch(replica)
        return since


def _watch(replica: ReplicaProcess) -> None:
    """Returns when a replica has ended. Kills one that is silent, or has rows and makes no step, for STUCK_S."""
    steps, moved = -1, monotonic()
    while not replica.ended.wait(WATCH_S):
        last_stats = None if _error(replica.get_stats(), STATS_S) else replica.last_stats
        if last_stats is not None and (not last_stats.running or last_stats.totals["steps"] != steps):
            steps, moved = last_stats.totals["steps"], monotonic()
        elif monotonic() - moved > STUCK_S:
            log.error("replica %d has been stuck for %.0f s: it is killed", replica.number, monotonic() - moved)
            replica.kill()


def _given(start: Start, num: int) -> list[Start]:
    """The Start of each replica, with its share of the threads that one engine would use, and its device."""
    threads = max(1, torch.get_num_threads() // num)
    gpus = torch.cuda.device_count()
    devices = [f"cuda:{number % gpus}" if gpus else "cpu" for number in range(num)]
    return [replace(start, threads=threads, device=device) for device in devices]


def _affinity(number: int, request: AnyRequest) -> int:
    """How much an adapter and tenant prefer a replica: less is more, and the order is always the same."""
    return xxh64_intdigest(f"{number}\0{request.adapter or ''}\0{request.tenant}".encode(errors="replace"))


def _wait(asked: list[Future[Any]], timeout_s: float) -> None:
    end = monotonic() + timeout_s
    for one in asked:
        _error(one, max(0.0, end - monotonic()))


def _error(done: Future[Any], timeout_s: float) -> BaseException | None:
    try:
        return done.exception(timeout_s)
    except TimeoutError:
        return ClosedError(f"a replica has not replied for {timeout_s:g} s: try again")
