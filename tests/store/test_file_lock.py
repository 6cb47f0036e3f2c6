"""One at a time, threads and processes alike."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from polyvera.store.file_lock import exclusive


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = [], []

    def enter() -> None:
        for _ in range(20):
            with exclusive(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


def test_processes_take_turns_and_one_that_dies_leaves(tmp_path: Path) -> None:
    text = "import sys; from pathlib import Path; from polyvera.store.file_lock import exclusive\n"
    text += "with exclusive(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", text, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        entered = threading.Event()

        def enter() -> None:
            with exclusive(path):
                entered.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.2)
        other.kill()
        waiting.join(30)
        assert entered.is_set()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        exclusive(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
