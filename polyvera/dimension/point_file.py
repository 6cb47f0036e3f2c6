"""PointFile: every trained point of a measurement, a line of JSON as soon as it is there, so that it can go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyvera.errors import RecipeError
from polyvera.store.durable import replace_file
from polyvera.train.destination import check_folder

POINTS, SUBJECT = "points.jsonl", "measurement.json"

Key = tuple[str, int | None, int]


@dataclass(frozen=True)
class Point:
    """One tenant's score with one adapter.

    size: how many numbers the hash had, 0 for no adapter at all, None for the letters themselves. metric: what the
    score is. base: the bare base model's score, None where it has none. lr: the learning rate that trained it.
    problem: why there is no score.
    """

    family: str
    size: int | None
    seed: int
    tenant: str
    score: float | None
    metric: str = ""
    base: float | None = None
    lr: float | None = None
    problem: str = ""


class PointFile:
    """The points of one measurement in a folder; None keeps them in memory.

    subject: what is measured, as JSON values. Raises RecipeError for a folder that holds another measurement.
    """

    def __init__(self, folder: Path | None, subject: Mapping[str, Any]) -> None:
        self.folder, self.points = folder, dict[Key, list[Point]]()
        if folder is None:
            return
        check_folder(folder)
        kept = folder / SUBJECT
        if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != subject:
            raise RecipeError(f"output={str(folder)!r} holds another measurement: choose another folder")
        replace_file(kept, json.dumps(subject, indent=1).encode())
        for point in _read(folder / POINTS):
            self._take([point])

    def of(self, family: str, size: int | None, seed: int) -> list[Point] | None:
        """What one run gave, a point for each tenant; None where it has not been made."""
        return self.points.get((family, size, seed))

    def add(self, points: list[Point]) -> None:
        """Keeps all points of one run, all or none after a kill."""
        self._take(points)
        if self.folder is not None:
            lines = "".join(json.dumps(asdict(point)) + "\n" for point in points)
            before = (self.folder / POINTS).read_text(encoding="utf-8") if (self.folder / POINTS).exists() else ""
            replace_file(self.folder / POINTS, (before + lines).encode())

    def _take(self, points: list[Point]) -> None:
        for point in points:
            self.points.setdefault((point.family, point.size, point.seed), []).append(point)


def _read(path: Path) -> Iterator[Point]:
    if path.exists():
        yield from (Point(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
