"""GrammarProcesses: JSON schemas compiled where a compile that does not end can be ended."""

from __future__ import annotations

import json
import subprocess
import sys
from queue import Empty, LifoQueue
from threading import Timer

from polyvera.engine.generation.grammar_worker import LIMIT_S, MAX_MEMORY_BYTES, Vocabulary
from polyvera.errors import BusyError

NUM_PROCESSES = 4
START_S = 60.0  # to read the vocabulary, on a machine that is busy
TOO_COMPLEX = (
    f"the schema is too complex: compiling it takes more than {LIMIT_S:g} s or {MAX_MEMORY_BYTES >> 20} MiB; leave "
    "out patterns, or the least needed bounds"
)


class GrammarProcess:
    """One worker, from its first schema until it is closed or ended."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[str] | None = None

    def try_schema(self, schema: str) -> str:
        """What is wrong with a schema, '' for nothing."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        process = self._process or self._started()
        answer = _asked(process, json.dumps(schema) + "\n", LIMIT_S)
        if not answer:
            self.close()
        return str(json.loads(answer)) if answer else TOO_COMPLEX

    def close(self) -> None:
        """Ends it, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "polyvera.engine.generation.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        if not _asked(process, self._vocabulary.line + '"{}"\n', START_S):
            self.close()
            raise BusyError("the process that compiles schemas does not start: try again later")
        return process


class GrammarProcesses:
    """At most NUM_PROCESSES workers, begun when they are needed. Any number of threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._all = [GrammarProcess(vocabulary) for _ in range(NUM_PROCESSES)]
        self._free: LifoQueue[GrammarProcess] = LifoQueue()
        for process in self._all:
            self._free.put(process)

    def try_schema(self, schema: str) -> str:
        """What is wrong with a schema, '' for nothing. Raises BusyError where all workers are taken for long."""
        try:
            process = self._free.get(timeout=NUM_PROCESSES * LIMIT_S)
        except Empty:
            raise BusyError("too many schemas are being compiled: try again later", LIMIT_S) from None
        try:
            return process.try_schema(schema)
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Ends all of them."""
        for process in self._all:
            process.close()


def _asked(process: subprocess.Popen[str], text: str, limit_s: float) -> str:
    """The next line of its answer, '' where it has ended, of itself or since the time was over."""
    assert process.stdin is not None and process.stdout is not None
    timer = Timer(limit_s, process.kill)
    timer.start()
    try:
        process.stdin.write(text)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # it has ended
        return ""
    finally:
        timer.cancel()
