"""A trainer that is killed comes back by itself, and its job goes on."""

import os
import signal
import time

from tiny_start import new_job, tiny_start, wait

from polyvera.train.live.trainer_process import TrainerProcess


def test_a_killed_trainer_comes_back_and_its_job_ends(tmp_path):
    start = tiny_start(tmp_path)
    tuning, job = new_job(start)
    with TrainerProcess(start) as trainer:
        first = trainer.pid
        while tuning.jobs.get("acme", job.id).status == "queued":
            time.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        assert wait(tuning, job).status == "succeeded" and trainer.pid != first
    assert not list((start.policy.folder / "runs").glob("*"))
