"""Points outlive the process that made them, and belong to one measurement."""

from pathlib import Path

import pytest

from polyvera.dimension.point_file import POINTS, Point, PointFile
from polyvera.errors import RecipeError

SUBJECT = {"recipe": {"data": "x"}}


def point(**changes: object) -> Point:
    return Point(**{"family": "f", "size": 16, "seed": 0, "tenant": "t", "score": 0.5, **changes})  # type: ignore[arg-type]


def test_points_are_read_back(tmp_path: Path) -> None:
    file = PointFile(tmp_path, SUBJECT)
    run = [point(), point(tenant="u", score=None, problem="no rows")]
    file.add(run)
    file.add([point(size=None, seed=1, lr=0.1, base=0.2, metric="accuracy")])
    again = PointFile(tmp_path, SUBJECT)
    assert again.points == file.points
    assert again.of("f", 16, 0) == run
    assert again.of("f", 16, 1) is None


def test_another_measurement_is_refused(tmp_path: Path) -> None:
    PointFile(tmp_path, SUBJECT)
    with pytest.raises(RecipeError, match="holds another measurement"):
        PointFile(tmp_path, {"recipe": {"data": "y"}})


def test_without_a_folder_points_stay_in_memory(tmp_path: Path) -> None:
    file = PointFile(None, SUBJECT)
    file.add([point()])
    assert file.of("f", 16, 0) == [point()]
    assert not (tmp_path / POINTS).exists()
