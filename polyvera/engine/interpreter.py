"""take_turns: the engine's thread beside others of the same interpreter."""

from __future__ import annotations

import sys

SWITCH_S = 0.0005  # a tenth of Python's default


def take_turns() -> None:
    """Lets threads that wait for the interpreter have it sooner, in all of this process.

    A step takes it again after each of its thousand operations, and a thread that reads a long body keeps it for as
    long as it may: messages are read, and steps go on, beside such threads.
    """
    sys.setswitchinterval(SWITCH_S)
