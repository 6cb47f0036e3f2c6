"""The dry run of what is measured on a GPU: every part, on the CPU, with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = {
    "train step": {"ours/base", "PEFT/base", "ours/PEFT", "kept_MiB", "base of floor"},
    "fleet": {"tokens/s", "PEFT tokens/s", "ours/PEFT"},
    "decode": {"none_ms", "with_ms", "none/with"},
    "hot load": {"resident_ms", "new_ms"},
    "4 answers": {"engine tokens/s", "generate tokens/s", "engine/generate"},
    "50 resident adapters": {"KiB an adapter", "slots written/s"},
}


@pytest.mark.slow
def test_every_part_measures_something(tmp_path: Path) -> None:
    parts = ["decode-8b", "train-8b", "fleet-8b", "resident-8b"]
    run = subprocess.run(
        [str(ROOT / "scripts" / "gpu"), "--tiny", "--only", *parts],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "TESTS": "no", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    for what, names in FIGURES.items():
        found = [row for row in rows if row["what"].startswith(what)]
        assert found, f"no row for {what!r}"
        for row in found:
            assert names <= set(row) and all(row[name] > 0 for name in names - {"kept_MiB"}), row
    assert "TFLOP/s" in (tmp_path / "gpu.md").read_text()
