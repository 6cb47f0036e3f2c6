"""Sessions and runs are their tenant's alone."""

import pytest
from some_runs import opened, run_of, session_of

from polyvera.errors import UnknownObjectError
from polyvera.jobs.run_table import RunTable


def test_another_tenants_sessions_and_runs_are_not_there(tmp_path):
    tuning = opened(tmp_path)
    session = session_of(tuning)
    run = run_of(tuning, session=session)
    for reach in (tuning.runs.session, tuning.runs.beat, tuning.runs.finish):
        with pytest.raises(UnknownObjectError, match="there is no session"):
            reach("globex", session)
    for reach in (tuning.runs.get, tuning.runs.end):
        with pytest.raises(UnknownObjectError, match="there is no training run"):
            reach("globex", run)
    assert tuning.runs.sessions("globex", 9, 0) == [] and tuning.runs.list("globex", 9, 0) == ([], 0)


def test_lists_are_pages_the_newest_first(tmp_path):
    tuning = opened(tmp_path)
    session = session_of(tuning)
    runs = [run_of(tuning, number=i, session=session) for i in range(3)]
    found, total = tuning.runs.list("acme", 2, 1)
    assert [run.id for run in found] == [runs[1], runs[0]] and total == 3
    assert list(tuning.runs.of_session(session)) == runs and list(tuning.runs.sessions("acme", 5, 0)) == [session]


def test_a_session_that_is_finished_ends_its_runs(tmp_path):
    tuning = opened(tmp_path)
    session = session_of(tuning)
    run, other = run_of(tuning, session=session), run_of(tuning)
    tuning.runs.finish("acme", session)
    assert tuning.runs.session("acme", session).ended_s and tuning.runs.get("acme", run).ended_s
    assert tuning.runs.get("acme", other).ended_s is None
    tuning.runs.end("acme", other)
    assert tuning.runs.get("acme", other).ended_s


def test_a_beat_is_noted_where_the_last_is_long_ago(tmp_path):
    tuning = opened(tmp_path)
    session = session_of(tuning)
    with tuning.database.changing() as connection:
        connection.execute("UPDATE sessions SET seen_s = 5")
    RunTable(tuning.database).beat("acme", session)
    assert tuning.runs.session("acme", session).seen_s > 5
