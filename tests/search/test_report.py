"""The report of a search: rows, a verdict that keeps to its interval, JSON, a recipe and a picture."""

import json
import tomllib
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.layout import layout_of
from polyvera.adapter.spec import AdapterSpec
from polyvera.search.candidate import Candidate
from polyvera.search.halving import Tried
from polyvera.search.report import draw, recipe_text, to_json, verdicts, way_rows
from polyvera.search.search import Found, SearchTask, Way
from polyvera.train.recipe import Recipe

SITES = ("a.q", "b.q", "b.v")


def way(name: str, *scores: float) -> Way:
    spec = AdapterSpec("lora", 1)
    layout = layout_of(spec, dict.fromkeys(SITES, (4, 4)))
    one = Candidate("lora", 1, SITES[:2], "int4")
    tried = (Tried(one, 0.5, 4, 1900), Tried(replace(one, sites=SITES[2:]), inf, 4, 1800))
    adapter = Adapter(spec, layout, torch.zeros(layout.num_params))
    return Way(name, one, (tried, tried[:1]), scores, (0.01,) * len(scores), 1900, adapter)


@pytest.fixture
def found() -> Found:
    task = SearchTask(Recipe(model="m", data="rows.jsonl", columns={"prompt": "in"}), 2048)
    ways = way("search", 0.8, 0.82, 0.81), way("uniform", 0.5, 0.53, 0.5), way("random", 0.7, 0.9, 0.83)
    return Found(task, ways, "accuracy", {"a.q": 1.0}, SITES)


def test_a_verdict_needs_more_than_noise(found: Found) -> None:
    first, second = verdicts(found)
    assert first.startswith("the search beats uniform by accuracy: +0.3000")
    assert second.startswith("the search does not differ from random")
    one = Found(found.task, tuple(replace(w, scores=w.scores[:1]) for w in found.ways), "accuracy", {}, SITES)
    assert all("does not differ" in line and "one seed" in line for line in verdicts(one))


def test_rows_and_json_hold_every_way(found: Found) -> None:
    rows = way_rows(found)
    assert [row[""] for row in rows] == ["search", "uniform", "random"]
    assert rows[0]["search against it"] == "" and rows[0]["bytes"] == "1,900"
    ways = json.loads(json.dumps(to_json(found), allow_nan=False))["ways"]
    assert ways["search"]["tried"][0][1]["loss"] is None


def test_the_recipe_is_one(found: Found) -> None:
    given = tomllib.loads(recipe_text(found))
    recipe = Recipe(**given)
    assert recipe.targets == ("q",) and recipe.stored == "int4" and recipe.columns == {"prompt": "in"}


def test_a_picture_is_drawn(found: Found, tmp_path: Path) -> None:
    assert draw(found, tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"
