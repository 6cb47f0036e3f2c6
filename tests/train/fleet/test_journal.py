"""A fleet that is cut off anywhere goes on as if it had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_fleet import fleet, solo

from polyvera.adapter.method import METHODS
from polyvera.errors import RecipeError
from polyvera.store.registry import Registry
from polyvera.train.fleet.fleet import Fleet
from polyvera.train.fleet.journal import FINISHED, SKIPPED, Journal, Outcome

SHARED = next(name for name, row in METHODS.items() if row.shares_basis)

SCRIPT = """
import os, signal, sys
sys.path[:0] = {tests!r}
from pathlib import Path
import tiny_fleet
from polyvera.store.registry import Registry
def kill(now):
    if now.traffic.rounds == {rounds}:
        os.kill(os.getpid(), signal.SIGKILL)
tiny_fleet.fleet(Path({data!r}), kill, registry=Registry({store!r}), output={output!r}, save_every=4, **{choices!r})
"""


@pytest.mark.parametrize("method", [SHARED, next(name for name in METHODS if name != SHARED)])
def test_a_fleet_killed_in_the_middle_ends_as_if_it_had_not_been(folder: Path, tmp_path: Path, method: str) -> None:
    choices = {"method": method, "validation": 0.3, "eval_every": 3, "max_steps": 10}
    store, output = str(tmp_path / "store"), str(tmp_path / "run")
    own = Path(__file__).parent
    script = SCRIPT.format(
        tests=[str(own), str(own.parent)], rounds=15, data=str(folder), store=store, output=output, choices=choices
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=own, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    registry = Registry(store)
    before = {str(ref) for ref in registry.list()}
    assert before == {"t0@1", "t1@1", "t2@1"}
    with pytest.raises(RecipeError, match="resume it"):
        fleet(folder, registry=registry, output=output, save_every=4, **choices)
    with pytest.raises(RecipeError, match="another recipe.*lr was"):
        fleet(folder, registry=registry, output=output, save_every=4, resume=True, lr=0.5, **choices)
    result = fleet(folder, registry=registry, output=output, save_every=4, resume=True, **choices)
    assert {str(ref) for ref in registry.list()} == {f"t{k}@1" for k in range(5)}
    assert len(result.of(FINISHED)) == 5
    whole = fleet(folder, **choices)
    for outcome in whole.outcomes:
        assert outcome.adapter is not None
        assert torch.equal(registry.get(outcome.name).flat, outcome.adapter.flat)


def test_a_kill_between_publishing_and_the_record_publishes_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, output = Registry(tmp_path / "store"), str(tmp_path / "run")

    def cut(self: Journal, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "_append", cut)
        fleet(folder, registry=registry, output=output)
    assert len(registry.list()) == 1
    fleet(folder, registry=registry, output=output, resume=True)
    assert {str(ref) for ref in registry.list()} == {f"t{k}@1" for k in range(5)}


def test_rows_that_changed_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "run")

    def cut(now: Fleet) -> None:
        if now.traffic.rounds == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet(folder, cut, output=output, save_every=2)
    (folder / "t0.jsonl").write_text((folder / "t4.jsonl").read_text())
    result = fleet(folder, output=output, save_every=2, resume=True)
    changed = next(outcome for outcome in result.outcomes if outcome.name == "t0")
    assert changed.status == SKIPPED and "changed" in changed.problem
    assert len(result.of(FINISHED)) == 4


def test_a_resumed_fleet_begins_from_what_it_began_from(folder: Path, tmp_path: Path) -> None:
    """The mean of a store changes while a fleet publishes into it."""
    first, other = solo(folder / "t0.jsonl").adapter, solo(folder / "t1.jsonl").adapter

    def cut(now: Fleet) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet(folder, cut, start=first, output=str(tmp_path / "run"))
    resumed = fleet(folder, start=other, output=str(tmp_path / "run"), resume=True)
    whole = fleet(folder, start=first)
    for one, same in zip(resumed.outcomes, whole.outcomes, strict=True):
        assert one.adapter is not None and same.adapter is not None
        assert torch.equal(one.adapter.flat, same.adapter.flat)


def test_a_run_goes_on_on_its_own_base(tmp_path: Path) -> None:
    Journal(None, None).keep_base("one")
    journal = Journal(tmp_path, None)
    for _ in range(2):
        journal.keep_base("one")
    with pytest.raises(RecipeError, match="cannot be resumed on another base model: it was one, and is two"):
        journal.keep_base("two")
