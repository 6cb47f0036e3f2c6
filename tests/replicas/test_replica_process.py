"""A replica that is stuck, dies, cannot start, or loses its server."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fastapi.testclient import TestClient
from tiny_serve import LONGEST_WAIT, submit, until

from polyvera.engine.generation.request import FAILED, LENGTH, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import ClosedError, RecipeError
from polyvera.replicas import replica_pool as module
from polyvera.replicas.replica_pool import ReplicaPool
from polyvera.server.app import make_app
from polyvera.server.config import ServerConfig

LONG = SamplingParams(max_tokens=2000, ignore_eos=True)
LIMITS = Limits(max_rows=4, max_waiting=8, num_slots=3)


def test_one_that_is_stuck_is_killed_and_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("WATCH_S", 0.1), ("STUCK_S", 1.0), ("STATS_S", 0.3), ("BACKOFF_S", 0.01)):
        monkeypatch.setattr(module, name, seconds)
    with ReplicaPool(str(folder / "tiny"), None, LIMITS, num=2) as engine:
        pids = engine.pids
        asked = [submit(engine, [5 + i], None, LONG)[1] for i in range(2)]
        os.kill(pids[0], signal.SIGSTOP)
        assert {one.wait().finish_reason for one in asked} == {FAILED, LENGTH}, "the other's goes on"
        until(lambda: all(replica.is_accepting for replica in engine._all()))
        assert engine.pids[0] != pids[0] and engine.pids[1] == pids[1]


def test_one_that_dies_again_and_again_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", 0.01)
    with ReplicaPool(str(folder / "tiny"), None, LIMITS, num=1) as engine:
        for _ in range(module.MAX_DEATHS):
            (pid,) = engine.pids
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: engine.pids != [pid] or engine.failed)
        assert "3 times in quick succession" in str(engine.failed)
        health = TestClient(make_app(engine, ServerConfig(base="tiny")), base_url="http://localhost").get("/health")
        assert health.status_code == 503 and health.json() == {"status": "failed"}
        with pytest.raises(ClosedError):
            submit(engine, [5])


def test_one_that_cannot_start_says_why(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RecipeError, match="could not be loaded.*is damaged"):
        ReplicaPool(str(tmp_path / "tiny"), num=2).start()


def test_children_end_when_their_front_is_killed(folder: Path) -> None:
    program = str(Path(sys.executable).with_name("polyvera"))
    command = [program, "serve", str(folder / "tiny"), "--replicas", "2", "--port", "0"]
    with subprocess.Popen([*command, "--store", str(folder / "store")], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        assert any("http://" in line for line in front.stdout)
        children = psutil.Process(front.pid).children()
        assert len([one for one in children if "polyvera.replicas.replica_main" in one.cmdline()]) == 2
        for replica in children:
            replica.send_signal(signal.SIGTERM)  # as a service manager tells all processes of a group
        assert psutil.wait_procs(children, timeout=0.5)[0] == [], "it is the front's to answer"
        front.kill()
    assert psutil.wait_procs(children, timeout=LONGEST_WAIT)[1] == []
