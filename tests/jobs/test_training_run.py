"""A run comes out of the database as it went in, and its id is the one that the SDK makes."""

from some_runs import opened, run_of

from polyvera.jobs.training_run import RunChoices, RunOperation, run_id


def test_a_run_is_what_its_creator_chose(tmp_path):
    tuning = opened(tmp_path)
    chosen = RunChoices(8, 3, None, ("train_attn",))
    run = tuning.runs.get("acme", run_of(tuning, number=2, choices=chosen))
    assert run.choices == chosen and run.metadata == {"who": "me"} and run.id == run_id(run.session, 2)
    assert run.id.endswith(":train:2") and run.saved_seq == -1 and run.method is None
    assert RunOperation(run.id, 7, "forward", {}).id == f"{run.id}:7"
