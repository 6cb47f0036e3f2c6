"""What the trainer sees: calls in the order in which they came, answered once, kept until a later state is on disk."""

from some_runs import opened, run_of

from polyvera.jobs.operation_queue import MAX_ATTEMPTS, OperationQueue, RunAnswer
from polyvera.jobs.training_run import FORWARD_BACKWARD, OPTIMIZER_STEP


def test_an_answer_stands_and_costs_once(tmp_path):
    tuning = opened(tmp_path)
    run, queue = run_of(tuning), OperationQueue(tuning.database)
    asked = tuning.operations.submit("acme", run, 1, FORWARD_BACKWARD, {"loss_fn": "x"}, b"rows")
    assert [one.seq for one in queue.new()] == [0, 1] and not queue.new() and queue.rows(asked) == b"rows"
    for loss in (1.0, 2.0):
        queue.record([RunAnswer(run, 1, {"loss": loss}, b"logprobs", num_tokens=7)])
    found, logprobs = tuning.operations.get("acme", asked.id)
    assert found.answer == {"loss": 1.0} and logprobs == b"logprobs"
    [used] = tuning.database.rows("SELECT * FROM usage")
    assert used["tokens"] == 7 and used["tenant"] == "acme"


def test_calls_are_made_again_from_what_is_saved(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    for seq in (1, 2):
        tuning.operations.submit("acme", run, seq, FORWARD_BACKWARD, {}, b"rows")
    OperationQueue(tuning.database).saved(run, 1)
    queue = OperationQueue(tuning.database)
    [left] = queue.new()
    assert left.seq == 2 and queue.rows(left) == b"rows" and queue.run(run).saved_seq == 1
    queue.decide(run, "x", 8)
    assert (queue.run(run).method, queue.run(run).rank) == ("x", 8)


def test_a_run_that_brings_the_trainer_down_ends(tmp_path):
    tuning = opened(tmp_path)
    run, other = run_of(tuning), run_of(tuning)
    asked = tuning.operations.submit("acme", run, 1, OPTIMIZER_STEP, {})
    OperationQueue(tuning.database).record([RunAnswer(one, 0, {}) for one in (run, other)])
    for _ in range(MAX_ATTEMPTS + 1):
        OperationQueue(tuning.database).recover()
    queue = OperationQueue(tuning.database)
    assert "the trainer ended" in tuning.operations.get("acme", asked.id)[0].error
    assert queue.ended([run, other]) == {run} and queue.run(run) is None
    queue.end(other)
    assert queue.ended([run, other]) == {run, other}


def test_what_is_silent_ends_and_what_is_old_goes(tmp_path):
    tuning = opened(tmp_path)
    run, queue = run_of(tuning), OperationQueue(tuning.database)
    queue.record([RunAnswer(run, 0, {})])
    queue.tidy()
    assert tuning.operations.done([f"{run}:0"])
    with tuning.database.changing() as connection:
        connection.execute("UPDATE sessions SET seen_s = 5")
        connection.execute("UPDATE operations SET done_s = 5")
    queue.tidy()
    assert tuning.runs.get("acme", run).ended_s and not tuning.operations.done([f"{run}:0"])
