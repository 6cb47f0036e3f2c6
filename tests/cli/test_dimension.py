"""`dimension` from the command line: tables or JSON, files in the folder, and nothing trained twice."""

import json
from pathlib import Path

import pytest
from command_line import polyvera

pytestmark = pytest.mark.usefixtures("tenants")
ASK = (
    *("--model", "base", "--max-steps", "2", "--lr", "0.05", "--seeds", "1", "--refine", "0", "--size", "8"),
    *("--family", "lora:2", "--reference", "lora:2", "--output", "out"),
)


def test_a_task_is_measured_once() -> None:
    done = polyvera("dimension", "train/ann.jsonl", "--test", "test/ann.jsonl", *ASK).output
    assert "lora:2, 8 numbers, seed 0" in done and "d90, lora:2" in done
    assert {path.name for path in Path("out").iterdir()} == {
        "points.jsonl",
        "measurement.json",
        "dimension.json",
        "dimension.png",
    }
    again = polyvera("dimension", "train/ann.jsonl", "--test", "test/ann.jsonl", *ASK).output
    assert "seed 0" not in again and "d90, lora:2" in again


def test_a_folder_is_a_fleet() -> None:
    polyvera("dimension", "train", "--test", "test", *ASK, "--json")
    found = json.loads(Path("out/dimension.json").read_text())
    assert sorted(found["tasks"]) == ["ann", "bob", "cy"]
    assert Path("out/dimensions.png").exists()


def test_what_a_measurement_chooses_has_no_flag() -> None:
    assert "--rank " not in polyvera("dimension", "--help").output
    assert "No such option" in polyvera("dimension", "train/ann.jsonl", "--rank", "4", *ASK, fails=True).output
