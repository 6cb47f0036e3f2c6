"""A run's state moves between slot, memory and disk without a change."""

import pytest
import torch
from live_runs import live

from polyvera.errors import LayoutError, RecipeError
from polyvera.train.live.run_state import TENSORS, ParkedRuns, RunState


def drawn(seed, num=10, step=3):
    draw = torch.Generator().manual_seed(seed)
    return RunState(*(torch.randn(num, generator=draw) for _ in TENSORS), step=step)


def same(one, other):
    pairs = [(getattr(one, name), getattr(other, name)) for name in TENSORS]
    return one.step == other.step and all(a is b or (a is not None and torch.equal(a, b)) for a, b in pairs)


def test_a_slot_holds_what_was_put_there_bit_for_bit():
    with live() as trainer:
        num = trainer.bank.layout.num_params
        state, before = drawn(0, num), RunState.of_slot(trainer.moments, 0)
        state.into_slot(trainer.moments, 1)
        assert same(RunState.of_slot(trainer.moments, 1), state)
        assert same(RunState.of_slot(trainer.moments, 0), before) and before.grad is None
        before.into_slot(trainer.moments, 1)
        assert same(RunState.of_slot(trainer.moments, 1), before)
        with pytest.raises(LayoutError, match="10 numbers"):
            drawn(0).into_slot(trainer.moments, 1)


def test_a_copy_is_not_a_view():
    with live() as trainer:
        state = RunState.of_slot(trainer.moments, 0)
        trainer.bank.flat[0] += 1
        assert not torch.equal(state.weight, trainer.bank.flat[0])


@pytest.mark.parametrize("state", [drawn(1), RunState(torch.ones(3))], ids=["whole", "fresh"])
def test_a_file_holds_the_state(state, tmp_path):
    state.write(tmp_path / "run.safetensors")
    assert same(RunState.read(tmp_path / "run.safetensors"), state)
    (tmp_path / "run.safetensors").write_bytes(b"half")
    with pytest.raises(RecipeError, match="cannot be resumed from"):
        RunState.read(tmp_path / "run.safetensors")


def test_a_state_without_moments_is_its_numbers():
    bare = drawn(2).without_moments()
    assert torch.equal(bare.weight, drawn(2).weight) and bare.exp_avg is None and bare.step == 0
    assert bare.num_bytes == 40 and drawn(2).num_bytes == 160


def test_the_runs_parked_first_go_to_disk(tmp_path):
    parked = ParkedRuns(tmp_path, 2 * drawn(0).num_bytes)
    for seed in range(4):
        parked.put(f"r{seed}", drawn(seed))
    assert (len(parked), parked.num_on_disk, len(list(tmp_path.iterdir()))) == (4, 2, 2)
    assert all(same(parked.get(f"r{seed}"), drawn(seed)) for seed in range(4))
    for seed in range(4):
        parked.drop(f"r{seed}")
    assert len(parked) == 0 and not list(tmp_path.iterdir())


def test_without_a_folder_all_stay_in_memory():
    parked = ParkedRuns(None, 1)
    for seed in range(3):
        parked.put(f"r{seed}", drawn(seed))
    assert parked.num_on_disk == 0 and same(parked.get("r0"), drawn(0))


def test_a_run_that_cannot_be_written_stays_in_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    parked = ParkedRuns(tmp_path / "file", 1)
    parked.put("r0", drawn(0))
    with pytest.raises(OSError):
        parked.put("r1", drawn(1))
    assert same(parked.get("r0"), drawn(0)) and len(parked) == 1
