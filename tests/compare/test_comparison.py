import json
from pathlib import Path
from typing import Any

import pytest
from tiny_folder import save_tiny
from tiny_models import counting_rows

from polyvera.adapter.method import METHODS
from polyvera.compare.comparison import FINAL, FULL, RUNS, SWEEP, Comparison, Run, compare, read
from polyvera.compare.report import front, lines, means, write
from polyvera.errors import RecipeError

FIRST, SECOND, *_ = METHODS


@pytest.fixture
def choices(tmp_path: Path) -> dict[str, Any]:
    """Two methods and full fine-tuning on one task of a tiny model."""
    for name, num in (("train", 16), ("test", 4)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(num)))
    model = save_tiny(tmp_path / "model")
    return {
        "methods": [FULL, FIRST],
        "seeds": [0, 1],
        "factors": [1.0, 3.0],
        "settings": {"model": str(model), "max_steps": 2, "batch_size": 4, "validation": 0.25},
        "method": {FIRST: {"rank": 2}},
        "task": {
            "count": {
                "data": str(tmp_path / "train.jsonl"),
                "test": str(tmp_path / "test.jsonl"),
                "score": "token_accuracy",
                "also": ["perplexity"],
            }
        },
    }


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


def test_the_report_has_every_method_and_a_picture(choices: dict[str, Any], tmp_path: Path) -> None:
    comparison = Comparison(**choices)
    finals = compare(comparison, tmp_path / "out")
    page = write(comparison, finals, tmp_path / "out").read_text()
    for run in finals:
        assert f"| {run.method} |" in page
    assert (tmp_path / "out" / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    for line in lines(finals):
        assert f"{line.mean:.4f} ± {line.spread:.4f}" in page
    assert "| token_accuracy | perplexity |" in page


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [("a", 10, 0.5), ("b", 20, 0.4), ("c", 30, 0.7), ("d", 10, 0.3), ("e", 40, 0.7)]
    assert [name for name, _, _ in front(points)] == ["a", "c"]


def test_a_method_without_every_task_has_no_mean() -> None:
    one = Run("x", FIRST, FINAL, 1.0, 0, 0.1, "s", 0.5, 0.0, 10, 2, 1, 1.0, 1)
    other = Run("y", FIRST, FINAL, 1.0, 0, 0.1, "s", 0.7, 0.0, 10, 2, 1, 1.0, 1)
    lacking = Run("x", SECOND, FINAL, 1.0, 0, 0.1, "s", 0.9, 0.0, 10, 2, 1, 1.0, 1)
    assert means(lines([one, other, lacking])) == [(FIRST, 32, pytest.approx(0.6))]


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
