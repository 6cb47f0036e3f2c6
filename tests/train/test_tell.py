"""A line of a run is printed whole, beside the results."""

from dataclasses import replace

import pytest

from polyvera.data.tables import table
from polyvera.train.tell import tell_rows, to_nobody, to_stderr, told_once
from polyvera.train.tenants import Tables


def test_a_line_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    line = "lr 0.12 [by a sweep] " + "of rates, " * 30
    to_stderr(line)
    to_nobody(line)
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")


def test_what_rows_were_taken_for_and_what_is_not_read_of_them() -> None:
    told = list[str]()
    training = table("a", enumerate([{"text": "x", "label": label, "id": 1} for label in "ab"], 1))
    watched = table("b", enumerate([{"text": "x", "label": label} for label in "ab"], 1))
    tell_rows(Tables(training, watched, replace(watched, source="c", unread=(("d", 2),))), None, told.append)
    assert told == [
        "rows are for label: 2 classes (a, b)",
        "a: columns not read: id (2 rows)",
        "c: columns not read: d (2 rows)",
    ]
    told.clear()
    once = told_once(told.append)
    for source in ("a", "b"):
        once(Tables(replace(training, source=source), None, None))
    assert told == ["a: columns not read: id (2 rows)"]
