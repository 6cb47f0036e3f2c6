"""Replica: the process of one engine, which its server talks to over a socket.

Started as `python -m polyvera.replicas.replica_main FD`. It ends when its server ends, and ignores SIGINT and SIGTERM,
which are for the server.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event, Thread
from typing import Any, NoReturn

import torch

from polyvera.engine.adapter_loader import Observe
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.factory import engine_for
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput
from polyvera.engine.interpreter import take_turns
from polyvera.engine.protocol import EmbeddingEngine, GenerationEngine
from polyvera.errors import ClosedError, EngineError, FormatError, PolyveraError, ServeError
from polyvera.model.load import load_base, place
from polyvera.replicas import messages
from polyvera.replicas.connection import Connection
from polyvera.store.registry import Registry

log = logging.getLogger(__name__)
WORKERS = 8
WATCH_S = 0.5


class Replica:
    """The engine at this end of a connection. start() loads it; handle() takes every message after that."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open: dict[int, Callable[[], object]] = {}  # what cancels each request
        self._pool = ThreadPoolExecutor(WORKERS, "polyvera-replica")

    def start(self, given: messages.Start) -> None:
        """Loads the model, starts the engine and sends Ready. Raises what load_base() and the engine raise."""
        self._engine = engine = engine_of(given, self._observe).start()
        dtype = str(engine.model.dtype).removeprefix("torch.")
        pooling = None if engine.embedding is None else engine.embedding.pooling
        self._connection.send(messages.Ready(engine.fingerprint, dtype, engine.num_tokens, engine.limits, pooling))

    def watch(self) -> None:
        """Returns once the engine has failed."""
        pause = Event()
        while self._engine.failed is None:
            pause.wait(WATCH_S)

    def handle(self, message: messages.ToReplica) -> None:
        """Does what a message asks; what may take long runs in other threads. Raises FormatError for a second Start."""
        match message:
            case messages.Cancel():
                self._open.get(message.number, lambda: None)()
            case messages.Submit() if message.params.schema is None and message.params.grammar is None:
                self._accept(message, self._submit)
            case messages.Submit():
                self._pool.submit(self._accept, message, self._submit)  # it is compiled first
            case messages.Encode():
                self._accept(message, self._encode)
            case messages.Command():
                self._pool.submit(self._command, message)
            case messages.GetStats():
                self._get_stats(message)
            case messages.Start():
                raise FormatError("a replica takes one Start, and this is the second")

    def _accept(self, message: Any, ask: Callable[[Any], Callable[[], object]]) -> None:
        """Passes a request to the engine and sends Accepted. ask: returns a function that lets the answers follow."""
        try:
            go_on = ask(message)
        except PolyveraError as error:
            self._open.pop(message.number, None)
            self._connection.send(messages.Accepted(message.number, messages.fault_of(error)))
            return
        self._connection.send(messages.Accepted(message.number))
        go_on()

    def _submit(self, message: messages.Submit) -> Callable[[], object]:
        engine, accepted = _writing(self._engine), Event()

        def on_output(output: RequestOutput) -> None:
            accepted.wait()
            self._on_output(message.number, request, output)

        request = Request(
            message.prompt, message.adapter, message.params, on_output, message.tenant, weight=message.weight
        )
        self._open[message.number] = partial(engine.cancel, request)
        engine.submit(request)
        return accepted.set

    def _encode(self, message: messages.Encode) -> Callable[[], object]:
        engine = _reading(self._engine)
        ask: Callable[..., Future[Any]] = engine.classify if message.is_classes else engine.embed
        done = ask(message.rows, message.adapter, tenant=message.tenant, weight=message.weight)
        self._open[message.number] = done.cancel
        return lambda: done.add_done_callback(partial(self._on_encoded, message.number))

    def _on_encoded(self, number: int, done: Future[Any]) -> None:
        """Sends the result of an Encode; runs in the engine's thread, or in the one that cancelled it."""
        del self._open[number]
        try:
            if done.cancelled():
                raise ClosedError("the request was cancelled")
            self._connection.send(messages.encoded(number, done.result()))
        except PolyveraError as error:
            self._connection.send(messages.EncodeDone(number, fault=messages.fault_of(error)))

    def _on_output(self, number: int, request: Request, output: RequestOutput) -> None:
        """Sends the next part of an answer; runs in the engine's thread."""
        if output.finish_reason is not None:
            del self._open[number]
        fault = None if output.error is None else messages.fault_of(output.error)
        self._connection.send(
            messages.Delta(
                number, output.tokens, output.text, output.finish_reason, fault, request.num_reused, output.prompt
            )
        )

    def _command(self, message: messages.Command) -> None:
        adapter, engine = message.adapter, self._engine
        words = {
            "preload": lambda: engine.preload(adapter, timeout_s=message.timeout_s),
            "pin": lambda: engine.preload(adapter, pin=True, timeout_s=message.timeout_s),
            "unpin": lambda: engine.unpin(adapter),
            "evict": lambda: engine.evict(adapter),
        }
        try:
            words[message.name]()
            self._connection.send(messages.CommandDone(message.number))
        except PolyveraError as error:
            self._connection.send(messages.CommandDone(message.number, messages.fault_of(error)))

    def _get_stats(self, message: messages.GetStats) -> None:
        stats = self._engine.stats()
        self._connection.send(
            messages.Stats(
                message.number,
                stats.running,
                stats.waiting,
                stats.resident,
                stats.num_slots,
                dict(stats.totals),
                stats.waiting_adapters,
            )
        )

    def _observe(self, name: str, seconds: float) -> None:
        self._connection.send(messages.Timing(name, seconds))


def engine_of(given: messages.Start, observe: Observe) -> Generator | Embedder:
    """The engine for a model, not started yet. Sets the number of threads of this process.

    observe: called with the name and the seconds of what the engine measures. Raises what load_base() and the engine
    raise.
    """
    torch.set_num_threads(given.threads)
    base = place(load_base(given.model, task=given.task), given.device)
    registry = None if given.store is None else Registry(given.store)
    return engine_for(base, registry, given.limits, observe)


def _writing(engine: Generator | Embedder) -> GenerationEngine:
    if engine.generation is None:
        raise ServeError("this replica runs an encoder, which writes no text")
    return engine.generation


def _reading(engine: Generator | Embedder) -> EmbeddingEngine:
    if engine.embedding is None:
        raise ServeError("this replica runs a causal language model, which gives neither vectors nor classes")
    return engine.embedding


def run(end: socket.socket) -> NoReturn:
    """Handles the server's messages until it closes the connection or the engine fails."""
    connection = Connection(end, messages.TO_REPLICA)
    received = connection.messages()
    given = next(received, None)
    if isinstance(given, messages.Start):
        replica = Replica(connection)
        Thread(target=_live, args=(replica, connection, given), name="polyvera-replica", daemon=True).start()
        for message in received:
            replica.handle(message)
    os._exit(0)  # no one is left to answer, and the loading of a model cannot be interrupted


def _live(replica: Replica, connection: Connection, given: messages.Start) -> NoReturn:
    """Loads the model, waits for a failure, and reports it."""
    try:
        replica.start(given)
        replica.watch()
        fault = messages.fault_of(EngineError("the engine of a replica stopped because of an internal error"))
    except BaseException as error:
        if not isinstance(error, PolyveraError):
            log.exception("a replica could not be started")
        fault = messages.fault_of(error)
    connection.send(messages.Fatal(fault))
    connection.close()
    os._exit(1)


def main() -> NoReturn:
    """Runs the process; its one argument is the file descriptor of the inherited socket."""
    take_turns()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
