"""A publisher that dies at any instant leaves a whole registry, with every version that it had acknowledged."""

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from drawn_adapters import alike, drawn

from polyvera.adapter.method import METHODS
from polyvera.store.registry import Registry

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

FIRST, *_ = METHODS
FILE_EVENTS = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.scandir", "os.listdir"}
Acknowledged = dict[int, int]  # version -> seed


def publish_until_killed(root: str, first_seed: int, die_at: int, acknowledge: Connection) -> None:
    """Runs in a child: publishes one adapter after another, and says so; dies before file operation number die_at."""
    if die_at:
        die_before(root, die_at)
    registry, seed = Registry(root), first_seed
    while True:
        ref = registry.put("a", drawn(FIRST, seed=seed), alias="prod")
        acknowledge.send_bytes(f"{ref.version} {seed}".encode())
        seed += 1


def die_before(root: str, number: int) -> None:
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(args[0]).startswith(root):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def processes():
    """Children of a server that has imported everything, so that each starts in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drawn_adapters", "polyvera.store.registry"])
    return context


def started(processes, root: Path, first_seed: int = 0, die_at: int = 0):
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=publish_until_killed, args=(str(root), first_seed, die_at, there), daemon=True)
    child.start()
    there.close()
    return child, here


def heard(acknowledged: Connection, num: int = sys.maxsize) -> Acknowledged:
    """All that a dead child had said, or so many things that a living one says."""
    said: Acknowledged = {}
    while len(said) < num:
        try:
            version, seed = map(int, acknowledged.recv_bytes().split())
        except (EOFError, OSError):
            break
        said[version] = seed
    return said


def check(root: Path, acknowledged: Acknowledged) -> None:
    registry = Registry(root)
    assert registry.verify() == []
    assert set(acknowledged) <= {ref.version for ref in registry.list("a")}
    for version, seed in acknowledged.items():
        assert alike(registry.get(f"a@{version}"), drawn(FIRST, seed=seed))
    if acknowledged:
        assert registry.resolve("a@prod").version >= max(acknowledged)


def killed_at_random(processes, root: Path, rng: random.Random, first_seed: int) -> Acknowledged:
    child, acknowledged = started(processes, root, first_seed)
    acknowledged.poll(60)  # it has begun
    time.sleep(rng.uniform(0, 0.3))
    child.kill()
    child.join()
    return heard(acknowledged)


@pytest.mark.parametrize("num_publishes", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_publishes_under_kills(processes, tmp_path, num_publishes):
    rng, acknowledged = random.Random(0), {}
    num_kills = 0
    while len(acknowledged) < num_publishes or num_kills < 5:
        said = killed_at_random(processes, tmp_path, rng, 1000 * num_kills)
        assert acknowledged.keys().isdisjoint(said)
        acknowledged.update(said)
        num_kills += 1
    check(tmp_path, acknowledged)


@pytest.mark.parametrize("die_at", range(1, 31))
def test_death_before_every_file_operation(processes, tmp_path, die_at):
    child, acknowledged = started(processes, tmp_path, die_at=die_at)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    said = heard(acknowledged)
    check(tmp_path, said)
    assert Registry(tmp_path).put("a", drawn(FIRST)).version > max(said, default=0)
    assert Registry(tmp_path).verify() == []


def test_publishers_in_several_processes_never_overwrite(processes, tmp_path):
    children = [started(processes, tmp_path, 1000 * i) for i in range(3)]
    first = [heard(acknowledged, 20) for _, acknowledged in children]
    for child, _ in children:
        child.kill()
        child.join()
    heard_of = [said | heard(acknowledged) for said, (_, acknowledged) in zip(first, children, strict=True)]
    versions = [version for said in heard_of for version in said]
    assert len(versions) == len(set(versions)) > 0
    registry = Registry(tmp_path)
    assert registry.verify() == []
    for said in heard_of:
        for version, seed in said.items():
            assert alike(registry.get(f"a@{version}"), drawn(FIRST, seed=seed))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is synced")
def test_the_disk_has_it_before_put_returns(tmp_path, monkeypatch):
    steps: list[tuple[str, Path]] = []
    sync, link = os.fsync, Path.hardlink_to

    def noted_sync(fd):
        steps.append(("sync", Path(f"/proc/self/fd/{fd}").readlink()))
        sync(fd)

    def noted_link(self, target):
        steps.append(("link", self))
        link(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "hardlink_to", noted_link)
    Registry(tmp_path / "r").put("team/a", drawn(FIRST))
    linked = steps.index(("link", tmp_path / "r/adapters/team/a/1.safetensors"))
    assert [path.parent.name for step, path in steps[:linked] if step == "sync"].count(".tmp") == 1
    after = [path for step, path in steps[linked:] if step == "sync"]
    assert after == [tmp_path / "r" / x for x in ("adapters/team/a", "adapters/team", "adapters", "")]
    assert ("sync", tmp_path) in steps[:linked]
