import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import save_tiny_encoder

from polyvera.adapter.method import METHODS
from polyvera.compare.baseline import BASE, FULL, HEAD, MEAN_ONLY
from polyvera.compare.comparison import FINAL, RUNS, SWEEP, Comparison, Run, compare, read
from polyvera.data import tables as rows
from polyvera.errors import RecipeError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.load import load_base
from polyvera.train.recipe import HEAD_LR, Recipe
from polyvera.train.trainer import train

FIRST, *_ = METHODS


def test_each_method_is_swept_and_then_run_for_every_seed(choices: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    finals = compare(Comparison(**choices), folder)
    every = read(folder / RUNS)
    assert [(run.method, run.seed) for run in finals] == [(FULL, 0), (FULL, 1), (FIRST, 0), (FIRST, 1)]
    for method in (FULL, FIRST):
        sweep = [run for run in every if run.method == method and run.phase == SWEEP]
        best = min(sweep, key=lambda run: run.eval_loss)
        assert [run.factor for run in sweep] == [1.0, 3.0]
        assert {run.lr for run in finals if run.method == method} == {best.lr}
        assert all(run.value != run.value for run in sweep)  # the test rows were not looked at
    assert all(0 <= run.value <= 1 and run.peak_bytes > 0 and run.steps == 2 for run in finals)
    assert finals == [run for run in every if run.phase == FINAL]
    assert all(run.others["perplexity"] > 1 for run in finals)


def test_a_comparison_cut_short_goes_on_where_it_was(choices: dict[str, Any], tmp_path: Path) -> None:
    made: list[Run] = []

    def cut(run: Run) -> None:
        made.append(run)
        if len(made) == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compare(Comparison(**choices), folder, cut)
    with (folder / RUNS).open("a") as file:
        file.write("count,ful")  # a line that the kill cut short
    before = read(folder / RUNS)
    assert list(map(repr, before)) == list(map(repr, made))  # a value of nan is not equal to itself
    again: list[Run] = []
    finals = compare(Comparison(**choices), folder, again.append)
    assert len(finals) == 4 and len(again) == 2 * (2 + 2) - 3
    assert not {(r.method, r.phase, r.factor, r.seed) for r in again} & {
        (r.method, r.phase, r.factor, r.seed) for r in before
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["lorra"]}, "did you mean 'lora'"),
        ({"methods": []}, "methods"),
        ({"task": {}}, "task"),
        ({"seed": [1]}, "seed"),
        ({"settings": {"model": "x", "batchsize": 4}}, "batch_size"),
        ({"factors": [0.0]}, "factors"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    choices: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        Comparison(**{**choices, **change})


@pytest.mark.parametrize("change", [{"score": "token_acuracy"}, {"also": ["token_acuracy"]}])
def test_a_score_that_no_run_has_is_refused(choices: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    choices["task"]["count"] |= change
    with pytest.raises(RecipeError, match="did you mean 'token_accuracy'"):
        compare(Comparison(**{**choices, "factors": [1.0]}), tmp_path / "out")


def test_an_edge_is_marked_and_a_rate_that_diverges_is_no_choice(choices: dict[str, Any], tmp_path: Path) -> None:
    high = Comparison(**{**choices, "methods": [FULL], "factors": [1.0, 1e30], "seeds": [0]})
    [run] = compare(high, tmp_path / "high")
    assert (run.factor, run.is_edge) == (1.0, 1)
    assert [r.eval_loss for r in read(tmp_path / "high" / RUNS) if r.factor == 1e30] == [float("inf")]


def test_the_base_and_a_mean_are_scored_as_they_are(choices: dict[str, Any], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    settings = {**choices["settings"], "method": FIRST, "rank": 2}
    own = choices["task"]["count"]
    recipe = Recipe(**settings, data=own["data"], test=own["test"], name="other", store=store, lr=0.1)
    trained = train(recipe, progress=False)
    two = {"methods": [BASE, MEAN_ONLY], "method": {MEAN_ONLY: {"store": store}}, "settings": settings, "seeds": [0]}
    base, mean = compare(Comparison(**{**choices, **two}), tmp_path / "out")
    bare = load_base(settings["model"])
    found = evaluate(bare.model, bare.tokenizer, rows.read(own["test"])).scores
    assert base.others["perplexity"] == pytest.approx(found["perplexity"], rel=1e-4)
    assert mean.others["perplexity"] == pytest.approx(trained.scores["perplexity"], rel=1e-4)
    assert base.others != mean.others
    assert (base.stored_bytes, mean.stored_bytes) == (0, 0)
    assert not [run for run in read(tmp_path / "out" / RUNS) if run.phase == SWEEP]


def test_a_linear_probe_moves_its_head_alone(choices: dict[str, Any], tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path / "encoder")
    rows = [{"text": f"w{i % 7}", "label": ("even", "odd")[i % 2]} for i in range(20)]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"probe": {"data": str(data), "test": str(data), "score": "accuracy"}}
    settings = {**choices["settings"], "model": str(model)}
    probe = Comparison(methods=[HEAD], seeds=[0], factors=[1.0], settings=settings, task=task)
    [run] = compare(probe, tmp_path / "probe")
    assert run.num_params == run.num_head_params > 0
    assert run.adapter_bytes == 0
    assert run.lr == HEAD_LR
