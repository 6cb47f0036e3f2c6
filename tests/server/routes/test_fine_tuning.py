"""Jobs with OpenAI's own client: created, followed, and what they make called by their tenant alone."""

import json
import time

import httpx
import openai
import pytest
from tuned_server import ROWS, tuned

HELLO = [{"role": "user", "content": "the true thing"}]
LONGEST_S = 120.0


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    with tuned(tmp_path_factory.mktemp("trained")) as found:
        yield found


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    with tuned(tmp_path_factory.mktemp("idle"), is_trained=False, max_jobs=3, max_epochs=9) as found:
        yield found


def wait(client, id):
    ends = time.monotonic() + LONGEST_S
    while (job := client.fine_tuning.jobs.retrieve(id)).status in ("queued", "running"):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return job


def create(at, client, **choices):
    return client.fine_tuning.jobs.create(model="tiny", training_file=at.upload(client), **choices)


def test_a_job_makes_a_model_that_its_tenant_alone_can_call(training):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    made = create(training, training.acme, suffix="truth", seed=3, method=method, metadata={"who": "me"})
    assert made.status in ("queued", "running") and made.metadata == {"who": "me"} and made.seed == 3
    assert made.method.supervised.hyperparameters.n_epochs == 2
    job = wait(training.acme, made.id)
    assert job.status == "succeeded" and job.fine_tuned_model.startswith("ft/acme/truth-") and job.trained_tokens > 0
    answer = training.acme.chat.completions.create(model=job.fine_tuned_model, messages=HELLO, max_tokens=4)
    assert answer.choices[0].message.content is not None
    assert job.fine_tuned_model in [model.id for model in training.acme.models.list()]
    key = training.at.keys.add("operator", ["*"], base=True, admin=True)[0]
    for client in (training.globex, training.at.openai(key)):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model=job.fine_tuned_model, messages=HELLO, max_tokens=4)
        assert job.fine_tuned_model not in [model.id for model in client.models.list()]


def test_a_job_is_followed_by_its_events_and_checkpoints(training):
    job = wait(training.acme, create(training, training.acme, hyperparameters={"n_epochs": 2, "batch_size": 1}).id)
    jobs = training.acme.fine_tuning.jobs
    events = list(jobs.list_events(job.id, limit=2))
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]
    assert len(losses) == 4 and events[-1].message == f"Created fine-tuning job: {job.id}"
    first, second = list(jobs.checkpoints.list(job.id, limit=1))
    assert (first.step_number, second.step_number) == (4, 2) and first.metrics.train_loss > 0
    model = second.fine_tuned_model_checkpoint
    assert training.acme.chat.completions.create(model=model, messages=HELLO, max_tokens=2).model == model
    headers = {"Authorization": f"Bearer {training.acme.api_key}"}
    with httpx.stream(
        "GET", f"{training.at.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true", headers=headers
    ) as s:
        lines = [line.removeprefix("data: ") for line in s.iter_lines() if line]
    assert lines[-1] == "[DONE]" and [json.loads(line)["id"] for line in lines[:-1]] == [e.id for e in events][::-1]


def test_a_file_of_validation_is_watched(training):
    held_out = training.upload(training.acme, ROWS[:1])
    job = wait(training.acme, create(training, training.acme, validation_file=held_out).id)
    [last, *_] = training.acme.fine_tuning.jobs.checkpoints.list(job.id)
    assert job.status == "succeeded" and job.validation_file == held_out and last.metrics.full_valid_loss > 0


def test_a_job_learns_what_is_preferred(training):
    asked = {"messages": [{"role": "user", "content": "the true thing"}]}
    better, worse = ([{"role": "assistant", "content": text}] for text in ("is this", "thing the"))
    rows = [{"input": asked, "preferred_output": better, "non_preferred_output": worse}] * 2
    file = training.upload(training.acme, rows)
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.5}}}
    made = training.acme.fine_tuning.jobs.create(model="tiny", training_file=file, method=method)
    job = wait(training.acme, made.id)
    assert job.status == "succeeded" and job.method.type == "dpo" and job.method.dpo.hyperparameters.beta == 0.5
    events = training.acme.fine_tuning.jobs.list_events(job.id, limit=20).data
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]
    assert losses[-1] == pytest.approx(0.6931, abs=1e-3) and losses[0] < losses[-1]
    other = wait(training.acme, training.acme.fine_tuning.jobs.create(model="tiny", training_file=file).id)
    assert other.status == "failed" and "rows for method dpo" in other.error.message


def test_a_job_that_cannot_be_trained_says_why(training):
    long = [{"prompt": "the", "completion": "thing " * 600}]
    file = training.upload(training.acme, long)
    job = wait(training.acme, training.acme.fine_tuning.jobs.create(model="base", training_file=file).id)
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert "rows.jsonl" in job.error.message and job.fine_tuned_model is None


def test_another_tenants_jobs_are_not_there(idle):
    job = create(idle, idle.acme)
    jobs = idle.globex.fine_tuning.jobs
    assert list(jobs.list()) == []
    reaches = [jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list]
    for reach in reaches:
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
            reach(job.id)
    for stream in ("true", "false"):
        url = f"{idle.at.url}/v1/fine_tuning/jobs/{job.id}/events?stream={stream}"
        assert httpx.get(url, headers={"Authorization": f"Bearer {idle.globex.api_key}"}).status_code == 404
    with pytest.raises(openai.NotFoundError, match="No such File"):
        jobs.create(model="tiny", training_file=job.training_file)
    assert idle.acme.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_a_job_is_paused_resumed_and_cancelled(idle):
    jobs, job = idle.acme.fine_tuning.jobs, create(idle, idle.acme)
    assert jobs.pause(job.id).status == "paused" and jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.ConflictError, match="to resume it"):
        jobs.resume(job.id)
    with pytest.raises(openai.ConflictError, match="is needed by"):
        idle.acme.files.delete(job.training_file)
    assert jobs.cancel(job.id).status == "cancelled" and idle.acme.files.delete(job.training_file).deleted


def test_lists_go_on_behind_an_item(idle):
    made = [create(idle, idle.globex).id for _ in range(3)]
    assert [job.id for job in idle.globex.fine_tuning.jobs.list(limit=2)] == made[::-1]
    with pytest.raises(openai.RateLimitError, match="3 of your jobs") as caught:
        create(idle, idle.globex)
    assert caught.value.code == "insufficient_quota"
    for after in ("nonsense", "ftevent-x", "ftckpt-1"):
        with pytest.raises(openai.BadRequestError, match="after:"):
            idle.globex.fine_tuning.jobs.list_events(made[0], after=after)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"model": "gpt-4o"}, "fine-tunes tiny, not 'gpt-4o'"),
        ({"model": "ft/acme/x"}, "fine-tunes tiny"),
        ({"hyperparameters": {"n_epochs": 10}}, "at most 9"),
        ({"hyperparameters": {"n_epochs": 10**9}}, "n_epochs"),
        ({"method": {"type": "reinforcement"}}, "supervised"),
        ({"method": {"type": "dpo", "supervised": {}}}, "supervised goes with type"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1.0}}}}, "beta"),
        ({"suffix": "../x"}, "suffix"),
        ({"extra_body": {"lora_rank": 3}}, "does not know it"),
    ],
)
def test_what_is_not_done_is_refused_before_it_is_in_line(idle, choices, words):
    given = {"model": "tiny", "training_file": "file-0", **choices}
    with pytest.raises(openai.BadRequestError, match=words):
        idle.acme.fine_tuning.jobs.create(**given)
