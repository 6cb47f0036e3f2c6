"""The report of a comparison: every method and score, a picture, and the front of score against bytes."""

from pathlib import Path
from typing import Any

import pytest

from polyvera.adapter.method import METHODS
from polyvera.compare.comparison import FINAL, Comparison, Run, compare
from polyvera.compare.report import front, lines, means, write

FIRST, SECOND, *_ = METHODS


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
