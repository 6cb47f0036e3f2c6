"""A line is one object, whole, whoever writes beside."""

import json
from pathlib import Path
from threading import Event, Thread

import pytest
from tiny_serve import until

from polyvera.errors import ServeError
from polyvera.server.json_lines import MAX_QUEUED, JsonLines, QueuedLines


def test_lines_of_many_threads_stay_whole_and_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for _ in range(2):
        lines = JsonLines(path)
        threads = [Thread(target=lines.write, args=({"i": i, "text": "é\n" * 99},)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["i"] for row in rows) == sorted([*range(20), *range(20)])


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="cannot be written: Is a directory"):
        JsonLines(tmp_path)


class Slow(JsonLines):
    """Lines that nobody takes for a while."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.go = Event()

    def write(self, *rows: object) -> None:
        self.go.wait()
        super().write(*rows)  # type: ignore[arg-type]


def test_queued_lines_wait_for_nobody_and_count_what_is_lost(tmp_path: Path) -> None:
    lines = Slow(tmp_path / "lines")
    queued = QueuedLines(lines)
    for i in range(MAX_QUEUED + 100):
        queued.put({"i": i})
    lines.go.set()
    until(lambda: not queued._rows.qsize())
    queued.put({"i": "last"})
    until(lambda: "last" in (tmp_path / "lines").read_text())
    rows = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    lost = sum(row.get("lost_before", 0) for row in rows)
    assert len(rows) + lost == MAX_QUEUED + 101 and 0 < lost <= 100


def test_a_disk_without_room_does_not_end_the_writer(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines")
    queued = QueuedLines(lines)
    lines._file.close()
    queued.put({"i": 1})
    until(lambda: queued._num_lost == 1)
    lines._file = (tmp_path / "lines").open("a")
    queued.put({"i": 2})
    until(lambda: json.loads((tmp_path / "lines").read_text() or "{}") == {"i": 2, "lost_before": 1})
