"""`align` from the command line: a table, and with an output a JSON and a heat map."""

import json
from pathlib import Path

import pytest
from command_line import polyvera

pytestmark = pytest.mark.usefixtures("tenants")


def test_a_model_is_aligned_with_itself() -> None:
    ask = ("base", "base", "train/ann.jsonl", "--k", "2", "--permutations", "5")
    done = polyvera("align", *ask, "--output", "out")
    assert "share 100.0% of 2 nearest" in done.output
    assert json.loads(Path("out/align.json").read_text())["score"] == 1.0 and Path("out/align.png").exists()
    assert json.loads(polyvera("align", *ask, "--json").stdout)["p"] <= 0.5
