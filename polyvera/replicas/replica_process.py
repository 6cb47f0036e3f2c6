"""ReplicaProcess: one replica on the server's side, from the start of its process to its end."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import Future
from itertools import count
from socket import socketpair
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Literal

from polyvera.engine.adapter_loader import Observe
from polyvera.engine.embedding.request import EncodeRequest
from polyvera.engine.generation.request import CANCELLED, FAILED, Request, RequestOutput
from polyvera.errors import ClosedError, EngineError, FormatError, PolyveraError
from polyvera.replicas.connection import Connection
from polyvera.replicas.messages import (
    FROM_REPLICA,
    Accepted,
    Cancel,
    Command,
    CommandDone,
    Delta,
    EncodeDone,
    Fatal,
    FromReplica,
    GetStats,
    Ready,
    Start,
    Stats,
    Timing,
    asked,
)
from polyvera.store.reference import AdapterRef

log = logging.getLogger(__name__)
SUBMIT_S, STATS_S, END_S = 60.0, 1.0, 10.0
ERRORS = 2  # the process's errors, which a replica's output goes to as well
AnyRequest = Request | EncodeRequest


class ReplicaProcess:
    """A process with an engine. All methods may be called from any thread.

    number: of the replica, from 0.
    start: what it loads.
    observe: called with the name and the seconds of what the engine measures.
    ready: a future of its Ready, or of the error that kept it from starting.
    is_accepting: whether it takes requests; accept() makes it so.
    ended: set once the process has ended.
    last_stats: its latest Stats.
    """

    def __init__(self, number: int, start: Start, observe: Observe) -> None:
        self.number, self.ready, self.ended = number, Future[Ready](), Event()
        self.is_accepting = self._is_closing = self._is_lost = False
        self.last_stats: Stats | None = None
        self._observe = observe
        self._lock, self._numbers = Lock(), count(1)
        self._reserved: dict[int, AnyRequest] = {}  # sent or about to be, and not accepted yet
        self._open: dict[int, AnyRequest] = {}
        self._replies: dict[tuple[type[Any], int], Future[Any]] = {}
        ours, theirs = socketpair()
        with theirs:  # -P: nothing is imported from the current folder
            command = [sys.executable, "-P", "-m", "polyvera.replicas.replica_main", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=ERRORS, process_group=0
            )
        self._connection = Connection(ours, FROM_REPLICA)
        self._connection.send(start)
        Thread(target=self._run, name=f"polyvera-replica-{number}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._reserved) + len(self._open)

    @property
    def is_running(self) -> bool:
        """Whether its engine runs."""
        return self.ready.done() and self.ready.exception() is None and not self._is_lost

    def accept(self) -> None:
        """Lets it take requests, unless it has ended."""
        with self._lock:
            self.is_accepting = not (self._is_lost or self._is_closing)

    def reserve(self, request: AnyRequest) -> None:
        """Counts a request as this replica's, before submit(). Raises ClosedError if it takes none."""
        with self._lock:
            if not self.is_accepting:
                raise self._exited()
            self._reserved[request.number] = request

    def submit(self, request: AnyRequest) -> None:
        """Sends a reserved request; returns once it is accepted.

        Raises what the engine raises, and ClosedError if the process ends or does not reply within SUBMIT_S.
        """
        try:
            self._call(Accepted, asked(request)).result(SUBMIT_S)
        except TimeoutError:
            self._connection.send(Cancel(request.number))
            raise ClosedError(f"replica {self.number} has not replied for {SUBMIT_S:g} s: try again") from None
        finally:
            self._reserved.pop(request.number, None)

    def cancel(self, request: AnyRequest) -> None:
        """Cancels a request, if it is one of this replica's."""
        if request.number in self._open:
            self._connection.send(Cancel(request.number))

    def command(
        self, name: Literal["preload", "pin", "unpin", "evict"], ref: AdapterRef, timeout_s: float
    ) -> Future[CommandDone]:
        """Sends a command about an adapter.

        timeout_s: how long the replica may take. The future raises what the engine raises, and ClosedError if the
        process ends.
        """
        return self._call(CommandDone, Command(next(self._numbers), name, ref, timeout_s))

    def get_stats(self) -> Future[Stats]:
        """Asks what runs and is resident. The future raises ClosedError if the process ends."""
        return self._call(Stats, GetStats(next(self._numbers)))

    def kill(self) -> None:
        """Kills the process; its open requests fail."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process; its open requests are cancelled. Returns once it has ended."""
        self.is_accepting, self._is_closing = False, True
        self._connection.close()
        self.ended.wait()

    def _call(self, reply: type[Any], message: Any) -> Future[Any]:
        done: Future[Any] = Future()
        with self._lock:
            if self._is_lost:
                done.set_exception(self._exited())
                return done
            self._replies[reply, message.number] = done
        try:
            self._connection.send(message)
        except PolyveraError:
            self._replies.pop((reply, message.number), None)
            raise
        return done

    def _run(self) -> None:
        """Reads its messages until it ends."""
        try:
            for message in self._connection.messages():
                self._handle(message)
        except FormatError:
            log.exception("replica %d sent an invalid message and is stopped", self.number)
        self._on_exit()
        self._connection.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self.ready.done():
            status = self._process.returncode
            self.ready.set_exception(
                EngineError(f"replica {self.number} ended with status {status} before it was ready")
            )
        self.ended.set()

    def _handle(self, message: FromReplica) -> None:
        match message:
            case Delta():
                self._on_delta(message)
            case EncodeDone():
                self._on_encoded(message)
            case Timing():
                self._observe(message.name, message.seconds)
            case Ready():
                self.ready.set_result(message)
            case Fatal():
                log.error("replica %d: %s", self.number, message.fault.message)
                if not self.ready.done():
                    self.ready.set_exception(message.fault.error())
            case Accepted() | CommandDone() | Stats():
                self._on_reply(message)

    def _on_reply(self, message: Accepted | CommandDone | Stats) -> None:
        if isinstance(message, Stats):
            self.last_stats = message
        reply = self._replies.pop((type(message), message.number), None)
        request = self._reserved.pop(message.number, None) if isinstance(message, Accepted) else None
        fault = None if isinstance(message, Stats) else message.fault
        if request is not None and fault is None:
            self._open[request.number] = request
        if reply is not None and fault is None:
            reply.set_result(message)
        elif reply is not None and fault is not None:
            reply.set_exception(fault.error())

    def _on_delta(self, message: Delta) -> None:
        request = self._open.get(message.number)
        if not isinstance(request, Request):  # its submit() was given up
            return
        if message.tokens and not request.first_token:
            request.first_token = monotonic()
        request.answer += [token.id for token in message.tokens]
        request.num_reused = message.num_reused
        error = None if message.fault is None else message.fault.error()
        self._report(request, RequestOutput(message.tokens, message.text, message.finish_reason, error, message.prompt))

    def _on_encoded(self, message: EncodeDone) -> None:
        request = self._open.pop(message.number, None)
        if isinstance(request, EncodeRequest) and message.fault is not None:
            request.end(message.fault.error())
        elif isinstance(request, EncodeRequest):
            request.take(message.meaning, message.tensor())
            request.end()

    def _report(self, request: Request, output: RequestOutput) -> None:
        if not request.report(output):
            self._connection.send(Cancel(request.number))
        if output.finish_reason is not None:
            self._open.pop(request.number, None)

    def _on_exit(self) -> None:
        """Ends everything that waits for the process."""
        with self._lock:
            self.is_accepting, self._is_lost = False, True
            replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply.set_exception(self._exited())
        for request in list(self._open.values()):
            self._lose(request)

    def _lose(self, request: AnyRequest) -> None:
        """Ends a request of a process that has ended: cancelled after close(), else failed."""
        if isinstance(request, EncodeRequest):
            self._open.pop(request.number, None)
            request.end(self._exited())
        elif self._is_closing:
            self._report(request, RequestOutput(finish_reason=CANCELLED))
        else:
            self._report(request, RequestOutput(finish_reason=FAILED, error=self._exited()))

    def _exited(self) -> ClosedError:
        return ClosedError(f"replica {self.number} has ended before it answered; other replicas continue, so try again")
