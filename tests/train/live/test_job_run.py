"""A job trains as the same recipe does alone, and goes on from its save as if it had not been away."""

import pytest
import torch
from live_runs import live, run_all, state_of
from tiny_models import counting_rows, make_model, make_tokenizer

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.data.encoding import encode
from polyvera.data.packed_rows import PackedRows
from polyvera.data.tables import table
from polyvera.errors import DivergedError, RecipeError
from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED
from polyvera.model.load import Base
from polyvera.train.live.job_run import JobRun
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

EPOCHS = 3


def rows(num):
    return PackedRows.of(encode(table("rows", enumerate(counting_rows(num), 1)), make_tokenizer(), 60))


def recipe(**choices):
    given = {"rank": 4, "targets": "all-linear", "epochs": EPOCHS, "batch_size": 4, "lr": 0.06, **choices}
    return Recipe(model="tiny", data="memory", **given)


def job(trainer, path, num=10, held_out=None):
    return JobRun("job", trainer, recipe(), rows(num), held_out, path / "job.safetensors")


def go(trainer, run, until=10**6):
    """Advances it as the worker does; what its epochs ended with."""
    ended = []
    while run.step < until and run.advance():
        if run.is_resting and run.epoch_end is not None:
            ended.append(run.epoch_end)
            run.epoch_end = None
        run_all(trainer)
    return ended


def test_a_job_trains_as_the_solo_loop_does(tmp_path):
    import json

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in counting_rows(10)))
    with live(num_slots=2) as trainer:
        run = job(trainer, tmp_path)
        ended = go(trainer, run)
        found = state_of(trainer, "job")
    own = recipe().replaced(data=str(tmp_path / "rows.jsonl"))
    alone = train(own, base=Base(make_model(), make_tokenizer()), progress=False).adapter.flat
    assert (found.weight - alone).norm() < 1e-4 * alone.norm() and run.step == 9
    assert [(end.epoch, end.step, end.valid_loss) for end in ended] == [(1, 3, None), (2, 6, None), (3, 9, None)]
    assert torch.equal(ended[-1].state.weight, found.weight) and 0 < run.train_loss < run.losses[0]


def test_a_job_of_preferences_trains_as_the_solo_loop_does(tmp_path):
    import json

    own = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "w9 w9"} for r in counting_rows(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    encoded = PackedRows.of(encode(table("rows", enumerate(own, 1)), make_tokenizer(), 60))
    with live(num_slots=2) as trainer:
        run = JobRun("job", trainer, recipe(), encoded, encoded, tmp_path / "job.safetensors", DPO)
        ended = go(trainer, run)
        found = state_of(trainer, "job")
    solo = recipe().replaced(data=str(tmp_path / "rows.jsonl"))
    alone = train(solo, base=Base(make_model(), make_tokenizer()), progress=False).adapter.flat
    assert (found.weight - alone).norm() < 1e-3 * alone.norm() and run.step == 6
    assert run.losses[0] == pytest.approx(0.6931, abs=1e-3) and ended[-1].valid_loss < run.losses[0]


def test_a_job_goes_on_from_its_save(tmp_path):
    with live() as trainer:
        go(trainer, job(trainer, tmp_path))
        truth = state_of(trainer, "job")
    with live() as trainer:
        run = job(trainer, tmp_path)
        go(trainer, run, until=4)
        assert run.is_settled
        taken = run.take_state()
        run_all(trainer)
        run.save(taken.result(0))
        run.close(forget=False)
        assert trainer.names == []
    with live() as trainer:
        run = job(trainer, tmp_path)
        assert run.step == 4
        go(trainer, run)
        assert torch.equal(state_of(trainer, "job").weight, truth.weight)
        run.close(forget=True)
    assert not list(tmp_path.iterdir())


def test_validation_rows_are_watched_at_the_end_of_each_epoch(tmp_path):
    with live() as trainer:
        ended = go(trainer, job(trainer, tmp_path, held_out=rows(4)))
    losses = [end.valid_loss for end in ended]
    assert len(losses) == EPOCHS and losses[-1] < losses[0]


@pytest.mark.parametrize("objective", [SUPERVISED, DPO])
@pytest.mark.parametrize("lr", [0.01, 30.0])
def test_an_adapter_far_worse_than_its_base_ends_the_job_before_it_is_published(objective, lr, tmp_path):
    base = Base(make_model(), make_tokenizer())
    bank = inject(base.model, AdapterSpec("lora", rank=4, targets=("q_proj", "lm_head")), 2)
    trainer = LiveTrainer(base, bank, batch_tokens=200)
    own = counting_rows(16)
    if objective == DPO:
        own = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "w9 w9"} for r in own]
    encoded = PackedRows.of(encode(table("rows", enumerate(own, 1)), make_tokenizer(), 60))
    chosen = recipe(lr=lr, warmup=0.0, epochs=1, batch_size=2, method="lora")
    run = JobRun("job", trainer, chosen, encoded, None, tmp_path / "job.safetensors", objective)
    if lr < 1:
        assert len(go(trainer, run)) == 1
        return
    with pytest.raises(DivergedError, match=r"the loss of the training rows is .* lower lr than 30"):
        go(trainer, run)
    assert run.epoch_end is None


def test_a_save_of_other_rows_is_refused(tmp_path):
    with live() as trainer:
        run = job(trainer, tmp_path)
        run.save(state_of(trainer, "job"))
        run.close(forget=False)
        with pytest.raises(RecipeError, match="not those that the job began with"):
            job(trainer, tmp_path, num=9)
