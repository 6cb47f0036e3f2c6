"""A fleet on two local Ray workers, one of them killed in the middle."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny_folder import save_tiny
from tiny_models import counting_rows, make_model, make_tokenizer

from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.journal import FINISHED, SKIPPED
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'polyvera[ray]'")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    place = tmp_path / "tenants"
    place.mkdir()
    for k in range(6):
        (place / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(8 + k)))
    (place / "bad.jsonl").write_text("")
    return Recipe(
        model=str(save_tiny(tmp_path / "model")),
        data=str(place),
        output=str(tmp_path / "run"),
        fleet=True,
        slots=2,
        workers=2,
        rank=4,
        batch_size=2,
        max_steps=40,
        save_every=5,
    )


def kill_one(output: Path) -> list[int]:
    """Kills a worker with signal 9 once one has saved its state; the list has its number when that is done."""
    killed: list[int] = []

    def look() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if list(output.glob("worker-*/training.safetensors")):
                killed.extend(process.pid for process in workers()[:1])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    threading.Thread(target=look, daemon=True).start()
    return killed


def workers() -> list[psutil.Process]:
    """Those of this test's own Ray that train now."""
    found = psutil.process_iter(["cmdline"])
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    return [p for p in found if p.pid in own and "ray::_share" in " ".join(p.info["cmdline"] or ())]


@pytest.mark.slow
def test_two_workers_one_killed_train_what_one_process_trains(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default a worker gives way to all else on the machine
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        killed = kill_one(Path(str(recipe.output)))
        result = train_fleet(recipe.replaced(store=str(tmp_path / "store")))
    finally:
        ray.shutdown()
    assert killed
    assert len(result.of(FINISHED)) == 6 and [o.name for o in result.of(SKIPPED)] == ["bad"]
    registry = Registry(tmp_path / "store")
    assert {str(ref) for ref in registry.list()} == {f"t{k}@1" for k in range(6)}
    solo = Registry(tmp_path / "solo")
    alone = train_fleet(recipe.replaced(workers=None, output=str(tmp_path / "alone")), registry=solo)
    for outcome in alone.of(FINISHED):
        one, other = registry.get(outcome.name).flat, solo.get(outcome.name).flat
        assert torch.allclose(one, other, atol=1e-5)
    with pytest.raises((RecipeError, ray.exceptions.RayTaskError), match="holds a run already"):
        train_fleet(recipe.replaced(store=str(tmp_path / "store")))


def test_workers_need_a_folder(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="output"):
        train_fleet(recipe.replaced(output=None, save_every=None, store=str(tmp_path / "s")))


def test_workers_publish_and_load_for_themselves(recipe: Recipe, tmp_path: Path) -> None:
    named = recipe.replaced(name="team", store=str(tmp_path / "s"))
    for asked, given in (
        (recipe, {}),
        (named, {"base": Base(make_model(), make_tokenizer())}),
        (named, {"watch": print}),
    ):
        with pytest.raises(RecipeError, match="workers=2 trains in other processes"):
            train_fleet(asked, **given)
