"""A run's state is on disk with the call that it was taken after."""

import pytest
import torch
from live_runs import live

from polyvera.errors import RecipeError
from polyvera.train.live.saved_run import read_run, write_run


def test_a_state_comes_back_with_its_call(tmp_path):
    path = tmp_path / "run.safetensors"
    assert read_run(path) is None
    with live() as trainer:
        write_run(path, 7, trainer.fresh())
        seq, state = read_run(path)
        assert seq == 7 and torch.equal(state.weight, trainer.fresh().weight)
    path.write_bytes(b"damaged")
    with pytest.raises(RecipeError):
        read_run(path)
