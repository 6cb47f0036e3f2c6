"""GrammarProcesses: JSON schemas compiled where a compile that does not end can be ended."""

from __future__ import annotations

import json
from queue import Empty, LifoQueue

from polyvera.engine.generation.grammar_worker import LIMIT_S, MAX_MEMORY_BYTES, Vocabulary
from polyvera.engine.worker_process import WorkerProcess
from polyvera.errors import BusyError

WORKER = "polyvera.engine.generation.grammar_worker"
NUM_PROCESSES = 4
TOO_COMPLEX = (
    f"the schema is too complex: compiling it takes more than {LIMIT_S:g} s or {MAX_MEMORY_BYTES >> 20} MiB; leave "
    "out patterns, or the least needed bounds"
)


class GrammarProcesses:
    """At most NUM_PROCESSES workers, begun when they are needed. Any number of threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        first = vocabulary.line
        self._all = [WorkerProcess(WORKER, lambda: first, LIMIT_S) for _ in range(NUM_PROCESSES)]
        self._free: LifoQueue[WorkerProcess] = LifoQueue()
        for process in self._all:
            self._free.put(process)

    def try_schema(self, schema: str) -> str:
        """What is wrong with a schema, '' for nothing. Raises BusyError where all workers are taken for long."""
        try:
            process = self._free.get(timeout=NUM_PROCESSES * LIMIT_S)
        except Empty:
            raise BusyError("too many schemas are being compiled: try again later", LIMIT_S) from None
        try:
            answer = process.ask(json.dumps(schema) + "\n")
        finally:
            self._free.put(process)
        return str(json.loads(answer)) if answer else TOO_COMPLEX

    def close(self) -> None:
        """Ends all of them."""
        for process in self._all:
            process.close()
