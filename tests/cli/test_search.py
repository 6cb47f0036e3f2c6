"""`search` from the command line: a table, the verdicts, and a recipe that `train` takes."""

from pathlib import Path

import pytest
from command_line import polyvera

pytestmark = pytest.mark.usefixtures("tenants")


def test_a_recipe_within_the_budget_is_found() -> None:
    ask = ("--model", "base", "--max-steps", "4", "--batch-size", "2", "--bytes", "2600", "--output", "out")
    done = polyvera("search", "train/ann.jsonl", "--test", "test/ann.jsonl", *ask, "--proposals", "2", "--seeds", "1")
    assert "the search" in done.output and "uniform" in done.output and "random" in done.output
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"search.json", "recipe.toml", "pareto.png", "adapter.safetensors"}
    assert Path("out/adapter.safetensors").stat().st_size <= 2600
    assert "published ann@1" in polyvera("train", "--recipe", "out/recipe.toml", "--store", "shop").output


def test_too_few_bytes_are_an_error() -> None:
    words = ("--model", "base", "--max-steps", "4", "--bytes", "99", "--output", "out")
    assert "no adapter fits" in polyvera("search", "train/ann.jsonl", *words, fails=True).output
