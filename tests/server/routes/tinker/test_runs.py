"""A run is made once, says what it trains, and is its tenant's alone."""

import pytest

from polyvera.adapter.method import METHODS
from polyvera.errors import ServeError
from polyvera.server.routes.tinker.runs import METHOD_KEY, check_scope, method_of

LORA = next(name for name, row in METHODS.items() if not row.shares_basis)


def test_a_run_says_what_it_trains(acme):
    session = acme.session()
    run = acme.run(session, 3, rank=2)
    assert run == f"{session}:train:3" == acme.run(session, 3, rank=2)
    info = acme.post("/get_info", model_id=run, type="get_info")
    assert info["lora_rank"] == 4 and info["model_data"]["model_name"] == "tiny" and info["model_id"] == run
    other = acme.run(session, 4, rank=2, user_metadata={METHOD_KEY: LORA})
    assert acme.post("/get_info", model_id=other)["lora_rank"] == 2
    found = acme.get("/training_runs", limit=1)
    assert found["training_runs"][0]["training_run_id"] == other and found["cursor"]["total_count"] >= 2
    assert acme.get(f"/training_runs/{other}")["user_metadata"] == {METHOD_KEY: LORA}


def test_another_tenants_run_is_not_there(acme, globex):
    run = acme.run()
    assert globex.http.post("/get_info", json={"model_id": run}).status_code == 404
    for verb in ("get", "delete"):
        assert getattr(globex.http, verb)(f"/training_runs/{run}").status_code == 404
    assert globex.get("/training_runs")["training_runs"] == []
    assert acme.http.delete(f"/training_runs/{run}").json()["ended"] is True


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"base_model": "gpt-4o"}, "trains tiny"),
        ({"lora_config": {"rank": 10**9}}, "rank"),
        ({"optimizer_config": {"type": "dimuon"}}, "adamw"),
        ({"user_metadata": {METHOD_KEY: "lorra"}}, "did you mean"),
        ({"nonsense": 1}, "does not know it"),
    ],
)
def test_what_is_not_trained_is_refused(acme, more, words):
    asked = {"session_id": acme.session(), "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    found = acme.http.post("/create_model", json=asked | more)
    assert found.status_code == 400 and words in found.json()["error"]["message"]


def test_a_rank_beyond_the_servers_fails_the_run(acme):
    asked = {"session_id": acme.session(), "model_seq_id": 0, "base_model": "base", "lora_config": {"rank": 4000}}
    found = acme.result(acme.post("/create_model", **asked, user_metadata={METHOD_KEY: LORA}))
    assert found["category"] == "user" and "rank=4000: this server trains" in found["error"]


def test_only_what_is_owned_is_shown():
    check_scope("owned")
    with pytest.raises(ServeError, match="access_scope"):
        check_scope("accessible")
    assert method_of({}) is None and method_of({METHOD_KEY: LORA}) == LORA
    with pytest.raises(ServeError, match="name of a method"):
        method_of({METHOD_KEY: 3})
