"""A trainer's process trains the jobs of a folder until it is told to end, and rests as it is told."""

import io
import json
from pathlib import Path
from threading import Event, Thread

import pytest
from tiny_start import ENDS_S, new_job, tiny_start, wait

from polyvera.errors import RecipeError
from polyvera.store.registry import Registry
from polyvera.train.live.trainer_main import TrainerStart, main, nice_for, resting, train_jobs


@pytest.fixture
def start(tmp_path):
    return tiny_start(tmp_path)


def test_a_start_goes_through_a_pipe(start):
    assert TrainerStart.from_json(start.to_json()) == start and "\n" not in start.to_json()
    assert (start.recipe.rank, start.recipe.method) == (4, start.policy.method)


def test_jobs_are_trained_until_the_end(start):
    tuning, job = new_job(start)
    ended, ready = Event(), Event()
    thread = Thread(target=train_jobs, args=(start, ended, ready.set))
    thread.start()
    assert ready.wait(ENDS_S)
    found = wait(tuning, job)
    ended.set()
    thread.join(ENDS_S)
    assert found.status == "succeeded" and not thread.is_alive()
    adapter = Registry(start.store).get(found.fine_tuned_model)
    assert adapter.model == start.model and adapter.base and adapter.spec.rank == 4


def test_a_mixture_whose_router_has_a_loss_of_its_own_is_refused(start):
    path = Path(start.model, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "output_router_logits": True}))
    with pytest.raises(RecipeError, match="output_router_logits"):
        train_jobs(start, Event())


def test_the_end_of_the_input_is_the_end(start, monkeypatch):
    monkeypatch.setattr("polyvera.train.live.trainer_main.os.nice", lambda by: None)
    main(io.StringIO(start.to_json() + "\n"))


def test_a_share_is_a_part_of_the_time(monkeypatch):
    slept = []
    monkeypatch.setattr("polyvera.train.live.trainer_main.time.sleep", slept.append)
    for share in (1.0, 0.5, 0.25):
        resting(share, None)(2.0)
    assert slept == [0.0, 2.0, 6.0]


def test_it_rests_the_less_the_less_it_got_of_the_cores(monkeypatch) -> None:
    slept, spent = [], iter([0.0, 4.0, 4.0, 5.2, 5.2, 5.3, 5.3])
    monkeypatch.setattr("polyvera.train.live.trainer_main.time.sleep", slept.append)
    monkeypatch.setattr("polyvera.train.live.trainer_main.time.process_time", lambda: next(spent))
    rest = resting(0.25, 2)
    for _ in range(3):  # both cores for all of 2 s; 0.6 of two, which is little more than its share; hardly anything
        rest(2.0)
    assert slept == pytest.approx([6.0, 0.4, 0.0])


def test_a_smaller_share_is_a_nicer_thread() -> None:
    assert [nice_for(share) for share in (1.0, 0.5, 0.3, 0.1, 0.001)] == [0, 0, 4, 10, 19]
