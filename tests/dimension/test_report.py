"""The report says what was measured: rows, JSON, and pictures of one task and of several."""

import json
from math import inf
from pathlib import Path

import pytest

from polyvera.dimension.crossing import Crossing, crossing
from polyvera.dimension.family import Family
from polyvera.dimension.measurement import Curve, Dimensions, Measurement
from polyvera.dimension.point_file import Point
from polyvera.dimension.report import (
    dimension_rows,
    draw_curves,
    draw_tasks,
    name_of,
    point_rows,
    size_text,
    to_json,
)
from polyvera.train.recipe import Recipe

SCORES = {0: (0.1,), 16: (0.3, 0.4), 64: (0.7, 0.8), 256: (0.95, 0.97)}


@pytest.fixture
def found() -> Dimensions:
    measurement = Measurement(Recipe(model="m", data="d"), families=(Family("vera"), Family("lora", 4)), num_seeds=2)
    reference = {"ann": (1.0, 0.98), "bob": (1.0, 1.0)}
    curves = [
        Curve(tenant, family.name, SCORES, crossing(SCORES, own, 0.9) if tenant == "ann" else Crossing(inf, 64, inf))
        for tenant, own in reference.items()
        for family in measurement.families
    ]
    points = (Point("vera", 16, 0, "ann", 0.3, "accuracy", None, 0.05),)
    metric = dict.fromkeys(reference, "accuracy")
    return Dimensions(measurement, tuple(curves), reference, metric, points, {"cy": "no rows"})


def test_rows_name_every_task_family_and_size(found: Dimensions) -> None:
    ann, bob = dimension_rows(found)
    assert ann["d90, vera"] == size_text(found.curves[0].crossing) and "[" in ann["d90, vera"]
    assert bob["d90, lora:4"] == "not reached [64, not reached]"
    rows = list(point_rows(found, "ann"))
    assert [row["numbers"] for row in rows] == ["0", "16", "64", "256"] * 2
    assert rows[1]["lr"] == "0.05" and rows[1]["score"] == "0.3500"


def test_json_has_no_number_that_json_lacks(found: Dimensions) -> None:
    text = json.dumps(to_json(found), allow_nan=False)
    tasks = json.loads(text)["tasks"]
    assert tasks["bob"]["families"]["vera"]["dimension"] is None
    assert tasks["ann"]["families"]["vera"]["scores"]["64"] == [0.7, 0.8]
    assert tasks["ann"]["line"] == pytest.approx(0.891)


def test_pictures_are_drawn(found: Dimensions, tmp_path: Path) -> None:
    for path in (draw_curves(found, tmp_path / "a.png"), draw_tasks(found, tmp_path / "b.png")):
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_share_has_its_usual_name() -> None:
    assert (name_of(0.9), name_of(0.5), name_of(0.995)) == ("d90", "d50", "d99.5")
