"""Runs of different methods and ranks train over one base, each with its own bank."""

import pytest
import torch
from live_runs import live, rows_of, run_all, state_of

from polyvera.adapter.method import METHODS
from polyvera.errors import SpecError
from polyvera.jobs.training_run import RunChoices
from polyvera.train.live.operation import OptimizerStep, Pass
from polyvera.train.live.run_trainers import MAX_BANKS, RunTrainers

OWN_BASIS = [name for name, row in METHODS.items() if not row.shares_basis]
LORA = OWN_BASIS[0]


def train(trainer, name):
    trainer.open(name)
    trainer.submit(name, Pass(rows_of(1)))
    trainer.submit(name, OptimizerStep(0.02))
    run_all(trainer)
    return state_of(trainer, name)


def test_the_rank_of_a_shared_basis_is_the_servers(tmp_path):
    with live() as own:
        trainers = RunTrainers(own, 2, tmp_path)
        for rank in (None, 1, 4, 32):
            assert trainers.of(RunChoices(rank)) == (trainers.key, own)
        with pytest.raises(SpecError, match="rank=1000: this server trains"):
            trainers.of(RunChoices(1000, method=LORA))


def test_a_second_bank_changes_nothing_in_the_first(tmp_path):
    with live() as own:
        before = train(own, "r1")
        trainers = RunTrainers(own, 2, tmp_path)
        key, other = trainers.of(RunChoices(2, method=LORA))
        assert key == (LORA, 2) and trainers.of(RunChoices(2, method=LORA))[1] is other
        assert torch.equal(train(own, "r2").weight, before.weight)
        made = train(other, "r3")
        assert not torch.equal(made.weight, other.fresh().weight)
        other.submit("r3", Pass(rows_of(2)))
        trainers.rounds()
        assert state_of(other, "r3").grad is not None
    with live(LORA) as alone:
        assert alone.bank.spec.method == LORA


def test_there_are_not_more_banks_than_fit(tmp_path):
    with live() as own:
        trainers = RunTrainers(own, 2, tmp_path)
        for rank in range(1, MAX_BANKS):
            trainers.of(RunChoices(rank, method=LORA))
        with pytest.raises(SpecError, match="nothing else beside them"):
            trainers.of(RunChoices(MAX_BANKS, method=LORA))


def test_layers_that_are_not_to_be_trained_are_refused(tmp_path):
    with live() as own:  # all of its linear layers
        trainers = RunTrainers(own, 2, tmp_path)
        trainers.of(RunChoices(4, trained=("train_mlp", "train_attn", "train_unembed")))
        with pytest.raises(SpecError, match="train_attn=False"):
            trainers.of(RunChoices(4, trained=("train_mlp",)))


def test_a_seed_draws_what_is_drawn():
    with live(LORA) as trainer:
        first, again, other = trainer.fresh(3), trainer.fresh(3), trainer.fresh(4)
        assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
        assert torch.equal(trainer.fresh(trainer.bank.spec.seed).weight, trainer.fresh().weight)
