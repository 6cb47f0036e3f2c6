"""`compare` from the command line: a line a run, the report, and nothing twice."""

from pathlib import Path

import pytest
from command_line import polyvera

pytestmark = pytest.mark.usefixtures("tenants")


def test_methods_are_compared() -> None:
    Path("methods.toml").write_text(
        'methods = ["lora", "vera"]\nseeds = [0]\n[settings]\nmodel = "base"\nrank = 4\nmax_steps = 2\n'
        'validation = 0.25\n[task.count]\ndata = "train/ann.jsonl"\ntest = "test/ann.jsonl"\nscore = "exact_match"\n'
    )
    done = polyvera("compare", "methods.toml", "--output", "out").output
    assert "count vera seed 0" in done
    assert "| vera |" in Path("out/report.md").read_text()
    assert {path.name for path in Path("out").iterdir()} == {"report.md", "pareto.png", "runs.csv", "comparison.toml"}
    assert "count" not in polyvera("compare", "methods.toml", "--output", "out").output.partition("report")[0]
