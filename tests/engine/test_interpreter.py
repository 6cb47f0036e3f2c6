"""Threads take turns more often than by default, where a server asks for it."""

import sys

from polyvera.engine.interpreter import SWITCH_S, take_turns


def test_threads_take_turns_more_often() -> None:
    before = sys.getswitchinterval()
    try:
        take_turns()
        assert sys.getswitchinterval() == SWITCH_S < 0.005
    finally:
        sys.setswitchinterval(before)
