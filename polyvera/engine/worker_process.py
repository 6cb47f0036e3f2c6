"""WorkerProcess: a process of polyvera's that answers lines with lines, and is ended where an answer takes too long.

Its side calls confine() once, and for each answer giving_way(), and end_after() for where whoever asked is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer, get_native_id
from typing import Any

from polyvera.errors import BusyError

NICE, SHORT_S = 10, 0.1
START_IDLE_S, START_S = 5.0, 60.0  # to read its first line, on a machine that is busy


class WorkerProcess:
    """One worker, begun when it is first asked, and again once it has ended.

    module: what it runs. first: makes its first line, which it answers as any other. limit_s: for an answer.

    It gives way to the other processes of its session.
    """

    def __init__(self, module: str, first: Callable[[], str], limit_s: float) -> None:
        self._command = [sys.executable, "-P", "-m", module]
        self._first, self.limit_s = first, limit_s
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Its answer to the first line, if it does not run yet. Raises BusyError where it does not start."""
        if self._process is not None and self._process.poll() is None:
            return ""
        self.close()
        first = self._first()
        # A group of its own, which is not interrupted with the server, and the server's session: in one of its own it
        # has its share of the cores, however nice it is.
        self._process = process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            process_group=0,
        )
        _be_nice(process.pid)
        with giving_way(START_IDLE_S, process.pid):
            answer = _asked(process, first, START_S)
        if not answer:
            self.close()
            raise BusyError("a process that reads requests does not start: try again later")
        return answer

    def ask(self, line: str) -> str:
        """Its answer, '' where it had to be ended. Raises BusyError where it does not start."""
        self.start()
        assert self._process is not None
        answer = _asked(self._process, line, self.limit_s)
        if not answer:
            self.close()
        return answer

    def close(self) -> None:
        """Ends it, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@contextmanager
def giving_way(seconds: float, thread: int = 0) -> Iterator[None]:
    """What a thread, else the calling one, computes inside has after SHORT_S only the time that nobody else wants.

    After so many seconds it has its share again, to come to an end. To Linux a core that does only idle work is a free
    one, where it wakes the threads of an engine; beside any other work, however nice, two of them may go on sharing
    one core, at a third of their speed or less.
    """
    if sys.platform != "linux":
        yield
        return
    own = thread or get_native_id()
    timers = [Timer(SHORT_S, _schedule, (own, os.SCHED_IDLE)), Timer(seconds, _schedule, (own, os.SCHED_OTHER))]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        _schedule(own, os.SCHED_OTHER)


def confine(num_bytes: int) -> None:
    """Lets this process take so much more memory than now."""
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_after(seconds: float) -> None:
    """Ends this process then, wherever it is; 0 for not at all."""
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_REAL, seconds)


def _be_nice(pid: int) -> None:
    """From its first moment on: it begins with seconds of imports."""
    if sys.platform == "linux":  # elsewhere nobody has seen what comes of it
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)


def _schedule(thread: int, policy: int) -> None:
    with suppress(OSError):  # it has ended, or may not: it stays nice
        os.sched_setscheduler(thread, policy, os.sched_param(0))


def _asked(process: Any, text: str, limit_s: float) -> str:
    """The next line of its answer, '' where it has ended, of itself or since the time was over."""
    timer = Timer(limit_s, process.kill)
    timer.start()
    try:
        process.stdin.write(text)
        process.stdin.flush()
        return str(process.stdout.readline())
    except OSError:  # it has ended
        return ""
    finally:
        timer.cancel()
