"""Rows and log-probabilities come out as they went in."""

import numpy as np

from polyvera.jobs.pass_rows import (
    PassRow,
    logprobs_from_bytes,
    logprobs_to_bytes,
    rows_from_bytes,
    rows_to_bytes,
)


def test_rows_of_any_width_come_back():
    one = PassRow(np.arange(3), np.arange(3), {"weights": np.ones(3, np.float32)})
    two = PassRow(np.arange(2), np.arange(4), {"weights": np.arange(4, dtype=np.float32)})
    found = rows_from_bytes(rows_to_bytes([one, two]))
    for before, after in zip((one, two), found, strict=True):
        assert before.tokens.tolist() == after.tokens.tolist() and before.targets.tolist() == after.targets.tolist()
        assert before.inputs["weights"].tolist() == after.inputs["weights"].tolist() and before.width == after.width
    assert found[1].positions.tolist() == [0, 0, 1, 1]


def test_logprobs_get_their_shape_back():
    flat, wide = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float32)
    found = logprobs_from_bytes(logprobs_to_bytes([flat, wide], [1, 2]))
    assert found[0].tolist() == [0, 1, 2] and found[1].tolist() == [[0, 1], [2, 3]]
