"""A replica: a process with one engine, which its server speaks with over a socket.

Started as `python -m polyvera.replicas.replica_main FD`. It ends when its server does, and by nothing else: the
server answers SIGINT and SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import NoReturn

import torch

from polyvera.adapter.fingerprint import fingerprint
from polyvera.engine.adapter_loader import Observe
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput
from polyvera.errors import EngineError, FormatError, PolyveraError
from polyvera.model.load import load_base, place
from polyvera.replicas import messages
from polyvera.replicas.connection import Connection
from polyvera.store.registry import Registry

log = logging.getLogger(__name__)
WORKERS = 8
WATCH_S = 0.5
SWITCH_S = 0.0005  # what the server says is heard beside the engine's thread, ten times sooner than by Python's own


class Replica:
    """An engine at the other end of a connection. start() loads it; handle() is given every message after Ready."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open: dict[int, Request] = {}
        self._pool = ThreadPoolExecutor(WORKERS, "polyvera-replica")

    def start(self, given: messages.Start) -> None:
        """Loads the model, starts the engine, and says messages.Ready. Raises what load_base and Generator raise."""
        self._engine = engine = engine_of(given, self._observe).start()
        dtype = str(engine.model.dtype).removeprefix("torch.")
        self._connection.send(messages.Ready(fingerprint(engine.model), dtype, engine.num_tokens, engine.limits))

    def watch(self) -> None:
        """Returns when the engine has failed."""
        pause = Event()
        while self._engine.failed is None:
            pause.wait(WATCH_S)

    def handle(self, message: messages.ToReplica) -> None:
        """Does what the server says; what may take its time is done beside the next messages."""
        match message:
            case messages.Cancel():
                request = self._open.get(message.number)
                if request is not None:
                    self._engine.cancel(request)
            case messages.Submit() if message.params.schema is None:
                self._submit(message)
            case messages.Submit():
                self._pool.submit(self._submit, message)  # a schema is compiled first
            case messages.Command():
                self._pool.submit(self._command, message)
            case messages.GetStats():
                self._get_stats(message)
            case messages.Start():
                raise FormatError("a replica is started once")

    def _submit(self, message: messages.Submit) -> None:
        accepted = Event()

        def on_output(output: RequestOutput) -> None:
            accepted.wait()  # Accepted comes first
            self._on_output(message.number, request, output)

        request = Request(message.prompt, message.adapter, message.params, on_output, message.tenant)
        self._open[message.number] = request
        try:
            self._engine.submit(request)
        except PolyveraError as error:
            del self._open[message.number]
            self._connection.send(messages.Accepted(message.number, messages.fault_of(error)))
            return
        self._connection.send(messages.Accepted(message.number))
        accepted.set()

    def _on_output(self, number: int, request: Request, output: RequestOutput) -> None:
        """In the engine's thread."""
        if output.finish_reason is not None:
            del self._open[number]
        fault = None if output.error is None else messages.fault_of(output.error)
        self._connection.send(
            messages.Delta(number, output.tokens, output.text, output.finish_reason, fault, request.num_reused)
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
                message.number, stats.running, stats.waiting, stats.resident, stats.num_slots, dict(stats.totals)
            )
        )

    def _observe(self, name: str, seconds: float) -> None:
        self._connection.send(messages.Timing(name, seconds))


def engine_of(given: messages.Start, observe: Observe) -> Generator:
    """An engine that is not started yet, its model loaded and on its device; sets the process's threads.

    Raises what load_base and Generator raise.
    """
    torch.set_num_threads(given.threads)
    base = place(load_base(given.model), given.device)
    registry = None if given.store is None else Registry(given.store)
    return Generator(base.model, base.tokenizer, registry, given.limits, observe)


def run(end: socket.socket) -> NoReturn:
    """Serves the server at the other end until it has gone, or the engine has failed."""
    connection = Connection(end, messages.TO_REPLICA)
    received = connection.messages()
    given = next(received, None)
    if isinstance(given, messages.Start):
        replica = Replica(connection)
        Thread(target=_live, args=(replica, connection, given), name="polyvera-replica", daemon=True).start()
        for message in received:
            replica.handle(message)
    os._exit(0)  # nobody hears what is left, and a model that is being loaded cannot be asked to stop


def _live(replica: Replica, connection: Connection, given: messages.Start) -> NoReturn:
    """From the loading of the model to the engine's failure."""
    try:
        replica.start(given)
        replica.watch()
        fault = messages.fault_of(EngineError("the engine of a replica has stopped after an error of its own"))
    except BaseException as error:
        if not isinstance(error, PolyveraError):
            log.exception("a replica could not be started")
        fault = messages.fault_of(error)
    connection.send(messages.Fatal(fault))
    connection.close()
    os._exit(1)


def main() -> NoReturn:
    """The process: its one argument is the number of the inherited socket."""
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
