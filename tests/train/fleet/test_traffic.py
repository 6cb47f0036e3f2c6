"""What went through the model is counted with what only fills rows up."""

import pytest

from polyvera.train.fleet.traffic import Traffic


def test_padding_is_counted_apart() -> None:
    traffic = Traffic(seconds=2.0)
    traffic.count([3, 5])
    traffic.count([2])
    assert (traffic.batches, traffic.rows, traffic.tokens, traffic.padding) == (2, 3, 10, 2)
    assert (traffic.padding_share, traffic.tokens_per_s) == (pytest.approx(2 / 12), 5.0)
    assert (Traffic().padding_share, Traffic().tokens_per_s) == (0.0, 0.0)
