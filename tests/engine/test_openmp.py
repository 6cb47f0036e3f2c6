"""Only the engine's thread keeps OpenMP workers while it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from openmp_workers import THREADS

from polyvera.engine import openmp

needs_openmp = pytest.mark.skipif(
    not (sys.platform == "linux" and openmp._pause() is not None), reason="counts the threads of OpenMP 5 in /proc"
)


@needs_openmp
def test_only_the_engine_keeps_workers() -> None:
    script = Path(__file__).with_name("openmp_workers.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    mine, engines, after_a_guest, after_another = map(int, done.stdout.split())
    assert engines == mine, "the caller's workers went, the engine's came"
    assert after_a_guest == engines
    assert after_another == engines + THREADS - 1, "the counts see workers where they are"


@needs_openmp
def test_a_thread_that_has_released_multiplies_as_before() -> None:
    x = torch.ones(300, 300)
    expected = x @ x
    openmp.release()
    openmp.release()
    assert torch.equal(x @ x, expected)


def test_without_openmp_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.openmp, "is_available", lambda: False)
    openmp._pause.cache_clear()
    try:
        assert openmp._pause() is None
        openmp.release()
    finally:
        monkeypatch.undo()
        openmp._pause.cache_clear()
