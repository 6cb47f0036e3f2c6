"""TokenizerProcesses: long texts turned into tokens beside the server's own process, which they would hold up."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from queue import Empty, LifoQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError

from polyvera.engine.worker_process import WorkerProcess
from polyvera.errors import BusyError, SamplingError
from polyvera.model.prompt import prompt_ids
from polyvera.server.tokenizer_worker import LIMIT_S, TRIAL, Call, CallResult, TokenizerFiles, line, read

log = logging.getLogger(__name__)
WORKER = "polyvera.server.tokenizer_worker"
NUM_PROCESSES = 2
T = TypeVar("T")


class TokenizerProcesses:
    """At most NUM_PROCESSES workers, begun beside the calls that first need them. Any number of threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()
        self._all: list[WorkerProcess] = []
        self._ready: LifoQueue[WorkerProcess] = LifoQueue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._has_ready = self._is_closed = False

    def call(self, work: Callable[..., T], given: dict[str, Any]) -> T:
        """What one of CALLS makes of the tokenizer and arguments by name; called here while no worker is there yet.

        Raises what it raises, SamplingError where it takes too long, and BusyError where all workers are taken.
        """
        call = Call(work.__name__, given)
        try:
            asked = line(call)
        except PydanticSerializationError:  # half a character, which tokenizers refuse in words of their own
            return work(self._tokenizer, **given)
        process = self._free()
        if process is None:
            return work(self._tokenizer, **given)
        found = self._found(process, asked)
        if found.fault is not None:
            raise found.fault.error()
        value: T = call.value(found.value)
        return value

    def close(self) -> None:
        """Ends all of them."""
        with self._lock:
            self._is_closed = True
            for process in self._all:
                process.close()
            if self._folder is not None:
                self._folder.cleanup()

    def _free(self) -> WorkerProcess | None:
        """One that is ready, None where none ever was."""
        with self._lock:
            if self._ready.empty() and len(self._all) < NUM_PROCESSES and not self._is_closed:
                self._all.append(process := WorkerProcess(WORKER, self._first, LIMIT_S))
                self._begin(process)
        try:
            return self._ready.get(block=self._has_ready, timeout=LIMIT_S)
        except Empty:
            if self._has_ready:
                raise BusyError("too many long texts are being read: try again later", LIMIT_S) from None
            return None

    def _first(self) -> str:
        with self._lock:
            if self._folder is None:
                folder = tempfile.TemporaryDirectory(prefix="polyvera-tokenizer-")
                self._tokenizer.save_pretrained(folder.name)
                self._folder = folder
        return line(TokenizerFiles(self._folder.name, str(self._tokenizer.name_or_path)))

    def _begin(self, process: WorkerProcess) -> None:
        Thread(target=self._start, args=(process,), name="polyvera-tokenizer", daemon=True).start()

    def _start(self, process: WorkerProcess) -> None:
        try:
            answer = process.start()
        except Exception as error:  # a tokenizer that cannot be saved, a full disk: texts are read here then
            log.warning("no process reads texts: %s", error)
            answer = ""
        if self._is_closed or answer != line(prompt_ids(self._tokenizer, TRIAL)):
            process.close()
            with self._lock:
                self._all.remove(process)
            if not self._is_closed:
                log.warning("no process reads texts as this one does: long texts are read here, and hold others up")
            return
        self._ready.put(process)
        self._has_ready = True

    def _found(self, process: WorkerProcess, asked: str) -> CallResult:
        answer = ""
        try:
            answer = process.ask(asked)
        finally:
            if answer:
                self._ready.put(process)
            else:
                self._begin(process)
        if not answer:
            raise SamplingError(
                f"the text takes more than {LIMIT_S:g} s, or too much memory, to be turned into tokens: shorten it"
            )
        found: CallResult = read(answer, CallResult)
        return found
