"""TrainerProcess: the trainer as a process of its own, which is started again where it dies."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from types import TracebackType

from polyvera.train.live.trainer_main import TrainerStart

log = logging.getLogger(__name__)
ERRORS = 2  # the process's errors, which its output goes to as well
END_S = 30.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
COMMAND = (sys.executable, "-P", "-m", "polyvera.train.live.trainer_main")  # -P: nothing from the current folder


class TrainerProcess:
    """A context in which a trainer runs.

    start: what it is started with. Jobs go on from their last save in each new process.
    """

    def __init__(self, start: TrainerStart) -> None:
        self._line = start.to_json() + "\n"
        self._closing = Event()
        self._process = self._started()
        self._thread = Thread(target=self._keep, name="polyvera-trainer", daemon=True)

    def __enter__(self) -> TrainerProcess:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._end(self._process)
        self._thread.join()

    @property
    def pid(self) -> int:
        """The process that trains now."""
        return self._process.pid

    def _started(self) -> subprocess.Popen[str]:
        # In its server's session: in one of its own it has its half of the cores, however nice it is.
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=ERRORS, text=True, process_group=0)
        assert process.stdin is not None
        with suppress(OSError):  # it has ended already
            process.stdin.write(self._line)
            process.stdin.flush()
        return process

    def _keep(self) -> None:
        """Starts it again and again until it is to end, later each time where it does not last."""
        wait_s = FIRST_WAIT_S
        while True:
            started = monotonic()
            status = self._process.wait()
            wait_s = FIRST_WAIT_S if monotonic() - started > LONGEST_WAIT_S else min(2 * wait_s, LONGEST_WAIT_S)
            if self._closing.wait(wait_s):
                return
            log.error("the trainer ended with status %d and is started again", status)
            self._process = self._started()
            if self._closing.is_set():
                self._end(self._process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Lets it save what trains, and kills it where that takes too long."""
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
