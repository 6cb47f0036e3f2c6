"""Rows that are held out for scoring are nobody's training rows, and the same ones for every seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import counting_rows

from polyvera.train.recipe import Recipe
from polyvera.train.tell import to_nobody
from polyvera.train.test_rows import TEST_SHARE, with_test_rows


def recipe_of(data: str, **choices: object) -> Recipe:
    return Recipe(**{"model": "tiny", "data": data, **choices})


@pytest.mark.parametrize("run_seed", [0, 1])
def test_a_share_of_the_rows_is_held_out(counting: str, run_seed: int) -> None:
    recipe = recipe_of(counting, run_seed=run_seed)
    [tenant] = with_test_rows(recipe, to_nobody)
    tables = tenant.tables(recipe)
    assert tenant.name == "counting"
    assert tables.test is not None and len(tables.test) == round(TEST_SHARE * 24)
    assert len(tables.training) + len(tables.test) == 24
    [other] = with_test_rows(recipe.replaced(run_seed=5), to_nobody)
    assert other.test == tenant.test


def test_every_tenant_of_a_fleet_has_some(
    tmp_path: Path, jsonl: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        jsonl(counting_rows(10), f"{name}.jsonl")
    jsonl([{"prompt": "w1", "completion": "w2"}], "few.jsonl")
    (tmp_path / "broken.jsonl").write_text("no json\n")
    (tmp_path / "notes.txt").write_text("not rows\n")
    said: list[str] = []
    found = {tenant.name: tenant for tenant in with_test_rows(recipe_of(str(tmp_path), fleet=True), said.append)}
    assert said == [f"{tmp_path}: not read: notes.txt"] and capsys.readouterr() == ("", "")
    assert all(found[name].test is not None for name in ("a", "b"))
    assert "too few" in found["few"].problem and "broken.jsonl, row 1" in found["broken"].problem


def test_given_test_rows_are_taken(counting: str, jsonl: Callable[..., str]) -> None:
    recipe = recipe_of(counting, test=jsonl(counting_rows(4), "test.jsonl"))
    [tenant] = with_test_rows(recipe, to_nobody)
    tables = tenant.tables(recipe)
    assert tables.test is not None and (len(tables.training), len(tables.test)) == (24, 4)
