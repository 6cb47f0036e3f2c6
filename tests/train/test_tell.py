"""A line of a run is printed whole, beside the results."""

import pytest

from polyvera.train.tell import to_nobody, to_stderr


def test_a_line_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    line = "lr 0.12 [by a sweep] " + "of rates, " * 30
    to_stderr(line)
    to_nobody(line)
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")
