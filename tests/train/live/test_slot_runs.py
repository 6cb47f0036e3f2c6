"""The runs used longest ago make room, and come back as they were."""

import torch
from live_runs import live, state_of

from polyvera.train.live.run_state import ParkedRuns, RunState
from polyvera.train.live.slot_runs import LiveRun, SlotRuns


def test_the_run_used_longest_ago_makes_room():
    with live() as trainer:
        slots = SlotRuns(trainer.moments, ParkedRuns(None, 1))
        runs = [LiveRun(f"r{i}") for i in range(5)]
        for number, run in enumerate(runs):
            slots.parked.put(run.name, RunState(torch.full((trainer.bank.layout.num_params,), float(number))))
        for run in runs[:3]:
            slots.seat(run, [run])
        slots.seat(runs[0], [runs[0]])
        slots.seat(runs[3], runs[3:5])
        slots.seat(runs[4], runs[3:5])
        assert [run.index is None for run in runs] == [False, True, True, False, False]
        assert all(slots.state(run).weight[0] == number for number, run in enumerate(runs))
        slots.drop(runs[0])
        slots.drop(runs[1])
        slots.seat(runs[2], [runs[2]])
        assert len(slots.parked) == 0 and runs[3].index is not None


def test_the_next_thing_that_a_run_waits_for_is_known():
    with live() as trainer:
        trainer.open("r0")
        run = LiveRun("r1")
        assert not run.next(int)
        run.waiting.append((1, None))
        assert run.next(int) and not run.next(str)
        assert state_of(trainer, "r0").step == 0
