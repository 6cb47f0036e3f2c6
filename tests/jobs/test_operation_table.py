"""A call is taken once, in its own tenant's run, up to a bound."""

import pytest
from some_runs import opened, run_of, session_of

from polyvera.errors import BusyError, QuotaError, UnknownObjectError
from polyvera.jobs import operation_table
from polyvera.jobs.operation_queue import OperationQueue, RunAnswer
from polyvera.jobs.training_run import FORWARD_BACKWARD, OPTIMIZER_STEP


def test_a_call_that_is_sent_twice_is_one_call(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    first = tuning.operations.submit("acme", run, 1, OPTIMIZER_STEP, {"a": 1})
    assert tuning.operations.submit("acme", run, 1, OPTIMIZER_STEP, {"a": 2}).id == first.id
    assert tuning.operations.submit("acme", run, None, OPTIMIZER_STEP, {}).seq == 2
    assert [asked.seq for asked in OperationQueue(tuning.database).new()] == [0, 1, 2]
    assert tuning.operations.get("acme", first.id)[0].request == {"a": 1}
    session = run.partition(":")[0]
    assert run_of(tuning, session=session) == run and tuning.runs.list("acme", 9, 0)[1] == 1


def test_another_tenants_calls_are_not_there(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    asked = tuning.operations.submit("acme", run, 1, OPTIMIZER_STEP, {})
    with pytest.raises(UnknownObjectError, match="no training run"):
        tuning.operations.submit("globex", run, 2, OPTIMIZER_STEP, {})
    for tenant, id in (("globex", asked.id), ("acme", "nonsense"), ("acme", f"{run}:9"), ("acme", f"{run}:²")):
        with pytest.raises(UnknownObjectError, match="no request"):
            tuning.operations.get(tenant, id)
    with pytest.raises(UnknownObjectError, match="no session"):
        run_of(tuning, "globex", session=session_of(tuning, "acme"))


def test_a_run_that_has_ended_takes_no_call(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    tuning.runs.end("acme", run)
    with pytest.raises(UnknownObjectError, match="has ended: go on from weights"):
        tuning.operations.submit("acme", run, 1, OPTIMIZER_STEP, {})


def test_what_is_refused_has_its_place_and_its_error(tmp_path):
    tuning = opened(tmp_path)
    run = run_of(tuning)
    asked = tuning.operations.submit("acme", run, 1, FORWARD_BACKWARD, {}, None, "bad rows")
    found, _ = tuning.operations.get("acme", asked.id)
    assert found.error == "bad rows" and found.is_users and found.done_s
    assert tuning.operations.done([asked.id, f"{run}:0", "x:1"]) == {asked.id}
    OperationQueue(tuning.database).saved(run, 5)
    late = tuning.operations.submit("acme", run, 4, OPTIMIZER_STEP, {})
    assert "too late" in tuning.operations.get("acme", late.id)[0].error


def test_calls_runs_and_tokens_have_bounds(tmp_path, monkeypatch):
    tuning = opened(tmp_path, max_runs=1, max_daily_tokens=10)
    run = run_of(tuning)
    with pytest.raises(QuotaError, match="1 of your training runs"):
        run_of(tuning)
    monkeypatch.setattr(operation_table, "MAX_WAITING_BYTES", 100)
    with pytest.raises(BusyError, match="wait already"):
        tuning.operations.submit("acme", run, 1, FORWARD_BACKWARD, {}, b"x" * 101)
    tuning.operations.submit("acme", run, 1, FORWARD_BACKWARD, {}, b"x")
    OperationQueue(tuning.database).record([RunAnswer(run, 1, {"loss": 1.0}, num_tokens=10)])
    with pytest.raises(QuotaError, match="your 10 tokens"):
        tuning.operations.submit("acme", run, 2, FORWARD_BACKWARD, {}, b"x")
    monkeypatch.setattr(operation_table, "MAX_WAITING", 1)
    with pytest.raises(BusyError):
        tuning.operations.submit("acme", run, 2, OPTIMIZER_STEP, {})
