"""`train` from the command line: the cost before the run, and nothing that would be kept by nobody."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tiny_folder import save_tiny_encoder

from polyvera.cli.training import head_for, print_cost, run
from polyvera.errors import DataError, RecipeError, TargetError
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.tell import to_nobody
from polyvera.train.tenants import tenants

pytestmark = pytest.mark.usefixtures("tenants")


def recipe(**choices):
    return Recipe(**{"model": "base", "data": "train/ann.jsonl", "max_steps": 2, "batch_size": 2, **choices})


@pytest.fixture
def page():
    return Console(file=io.StringIO(), width=160)


def said(page):
    return page.file.getvalue()


def test_a_run_says_its_cost_its_result_and_where_it_is(page):
    run(recipe(name="acme/one", output="run"), resume=False, dry_run=False, out=page)
    ref = Registry("adapters").resolve("acme/one")
    for words in ("8 rows, 4 adapted layers", "in 2 steps", "run/", f"published {ref} in adapters", ref.digest[:12]):
        assert words in said(page), words
    assert said(page).index("adapted layers") < said(page).index("in 2 steps")


def test_a_run_that_nobody_keeps_is_refused_before_its_cost(page):
    with pytest.raises(RecipeError, match="--name"):
        run(recipe(), resume=False, dry_run=False, out=page)
    assert not said(page)


def test_a_dry_run_costs_nothing(page):
    run(recipe(), resume=False, dry_run=True, out=page)
    assert "adapted layers" in said(page) and "steps" not in said(page) and not Path("adapters").exists()


def test_a_full_run_is_the_only_line(page):
    print_cost(recipe(full=True), page)
    assert "full" in said(page) and "vera" not in said(page)


def test_a_fleet_costs_its_slots_and_its_files(page):
    fleet = recipe(data="train", fleet=True, slots=2)
    print_cost(fleet, page, tenants(fleet, to_nobody))
    assert "3 tenants" in said(page) and "2 at a time" in said(page) and "stored in all" in said(page)


def test_what_cannot_be_is_refused_with_the_cost(page):
    with pytest.raises(TargetError, match="q_prj"):
        print_cost(recipe(targets=("q_prj",)), page)
    for path in Path("train").iterdir():
        path.write_text("")
    fleet = recipe(data="train", fleet=True)
    with pytest.raises(DataError, match="none of the 3 tenants"):
        print_cost(fleet, page, tenants(fleet, to_nobody))


@pytest.mark.parametrize(
    ("task", "outputs", "found"),
    [
        (None, 3, (None, 3, ())),
        ("regression", None, ("classification", 1, ("classifier",))),
        ("multi-label", 5, ("classification", 5, ("classifier",))),
        ("token-classification", None, ("token-classification", 2, ("classifier",))),
        ("pairs", None, ("classification", None, ())),
    ],
)
def test_a_task_says_which_head_is_counted(task, outputs, found, tmp_path):
    assert head_for(save_tiny_encoder(tmp_path), task, outputs) == found


def test_a_task_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"task='pair' must be one of: .*did you mean 'pairs'"):
        head_for(tmp_path, "pair", None)
