"""Curves of jobs and runs: thinned out, with the last step, of one tenant alone."""

from some_jobs import create, opened
from some_runs import run_of

from polyvera.jobs.job_queue import JobQueue, Progress
from polyvera.jobs.operation_queue import OperationQueue, RunAnswer
from polyvera.jobs.training_curves import MOST_POINTS
from polyvera.jobs.training_run import FORWARD_BACKWARD, OPTIMIZER_STEP

NUM_STEPS = 999


def test_a_long_job_has_few_points_and_the_last(tmp_path):
    tuning = opened(tmp_path)
    job, queue = create(tuning, "acme", suffix="long"), JobQueue(tuning.database)
    queue.claim()
    queue.record(Progress(job.id, step, step, {"train_loss": 1 / step}) for step in range(1, NUM_STEPS + 1))
    queue.add_checkpoint(job.id, 5, "ft/acme/long@1", {})
    [curve] = tuning.curves.jobs("acme", 20)
    steps = [step for step, _ in curve.points]
    assert MOST_POINTS // 2 < len(steps) <= MOST_POINTS + 1 and steps == sorted(steps) and steps[-1] == NUM_STEPS
    assert curve.points[-1][1] == 1 / NUM_STEPS and curve.models == ("ft/acme/long@1",)
    assert (curve.name, curve.status, curve.step, curve.kind) == ("long", "running", NUM_STEPS, "job")
    assert tuning.curves.jobs("globex", 20) == []


def test_a_run_has_the_losses_of_its_passes(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    for kind in (FORWARD_BACKWARD, OPTIMIZER_STEP, FORWARD_BACKWARD):
        tuning.operations.submit("acme", run, None, kind, {})
    answers = [RunAnswer(run, 1, {"loss": 3.0}), RunAnswer(run, 2, {"metrics": {}}), RunAnswer(run, 3, {"loss": 2.0})]
    OperationQueue(tuning.database).record(answers)
    [curve] = tuning.curves.runs("acme", 20)
    assert (curve.id, curve.kind, curve.points, curve.step) == (run, "run", ((1, 3.0), (2, 2.0)), 2)
    assert tuning.curves.runs("globex", 20) == []
