"""`train --fleet`, `eval --fleet`, `plan --fleet` and `--init-from` from the command line."""

import json
from pathlib import Path

import pytest
import torch
from command_line import polyvera
from typer.testing import Result

from polyvera.cli.fleet import INCOMPLETE
from polyvera.store.registry import Registry

pytestmark = pytest.mark.usefixtures("tenants")


def fleet(*more: str, fails: bool | int = False) -> Result:
    words = ("--model", "base", "--data", "train", "--rank", "4", "--max-steps", "3", "--batch-size", "2")
    return polyvera("train", "--fleet", *words, *more, fails=fails)


def test_a_fleet_is_trained_published_and_scored() -> None:
    Path("train/dan.jsonl").write_text("")
    done = fleet("--name", "shop", "--slots", "2", "--output", "run", fails=INCOMPLETE).output
    assert "2 at a time" in done and "3 of 4 tenants" in done and "dan skipped" in done and "no rows" in done
    assert {ref.name for ref in Registry("adapters").list()} == {"shop/ann", "shop/bob", "shop/cy"}
    shown = polyvera("eval", "shop", "--fleet", "--data", "test", "--output", "scores").output
    assert all(name in shown for name in ("ann", "bob", "cy", "majority"))
    assert "median" in Path("scores/scores.md").read_text()
    assert Path("scores/scores.csv").read_text().count("\n") == 4
    assert Path("scores/scores.png").read_bytes()[:4] == b"\x89PNG"
    scores = json.loads(polyvera("eval", "shop", "--fleet", "--data", "test", "--json").stdout)
    assert set(scores) == {"ann", "bob", "cy"} and set(scores["ann"]) == {"own", "base"}
    assert "--output" in polyvera("eval", "shop/ann", "--data", "test/ann.jsonl", "--output", "x", fails=True).output


def test_tenants_that_cannot_be_scored_are_named_and_the_others_go_on() -> None:
    fleet("--name", "shop")
    Path("test/cy.jsonl").write_bytes(b'{"prompt": "\xff", "completion": "w2"}\n')
    Path("test/bob.jsonl").write_text(json.dumps({"prompt": "w1 " * 5000, "completion": "w2"}) + "\n")
    Path("test/dan.jsonl").write_text(json.dumps({"prompt": "w1", "completion": "w2"}) + "\n")
    asked = ("eval", "shop", "--fleet", "--data", "test")
    shown = polyvera(*asked, fails=INCOMPLETE).output
    assert "cy skipped: test/cy.jsonl, row 1: not UTF-8" in " ".join(shown.split())
    assert "dan skipped: no adapter" in shown and "bob skipped: test/bob.jsonl" in shown and "ann" in shown
    scores = json.loads(polyvera(*asked, "--json", fails=INCOMPLETE).stdout)
    assert set(scores) == {"ann", "bob", "cy", "dan"}
    assert set(scores["ann"]) == {"own", "base"} and "not UTF-8" in scores["cy"]["problem"]


def test_test_rows_are_scored_at_the_end() -> None:
    assert "picture" in fleet("--test", "test", "--output", "run").output
    assert Path("run/scores.csv").exists()


def test_a_run_goes_on_after_it_was_asked_to() -> None:
    fleet("--output", "run")
    assert "resume it" in fleet("--output", "run", fails=True).output
    again = fleet("--output", "run", "--resume").output
    assert "3 of 3 tenants" in again
    assert len(Registry("adapters").list()) == 3


def test_a_dry_run_trains_nothing() -> None:
    assert "at a time" in fleet("--dry-run").output
    assert not Registry("adapters").list()


def test_an_alias_for_many_is_refused() -> None:
    assert "leave it out" in fleet("--alias", "live", "--name", "x", fails=True).output


def test_a_new_tenant_starts_from_the_mean_or_from_another() -> None:
    fleet()
    registry = Registry("adapters")
    alone = ("--model", "base", "--data", "train/ann.jsonl", "--rank", "4", "--max-steps", "1", "--lr", "1e-12")
    polyvera("train", *alone, "--name", "new", "--init-from", "mean")
    mean = torch.stack([registry.get(name).flat for name in ("ann", "bob", "cy")]).mean(0)
    assert torch.allclose(registry.get("new").flat, mean, atol=1e-6)
    polyvera("train", *alone, "--name", "other", "--init-from", "bob")
    assert torch.allclose(registry.get("other").flat, registry.get("bob").flat, atol=1e-6)
    words = polyvera("train", *alone, "--rank", "5", "--name", "five", "--init-from", "mean", fails=True).output
    assert "nothing to take the mean of" in words
    assert "'bub'" in polyvera("train", *alone, "--name", "six", "--init-from", "bub", fails=True).output


def test_the_plan_counts_a_fleet() -> None:
    costs = json.loads(polyvera("plan", "base", "--fleet", "32", "--json").stdout)
    for cost in costs[:-1]:
        assert cost["fleet_bytes"] - cost["training_bytes"] == 31 * 16 * cost["num_params"]
    assert "training 32 at a time" in polyvera("plan", "base", "--fleet", "32").output
