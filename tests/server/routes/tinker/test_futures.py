"""An answer is waited for, is its tenant's alone, and is asked for anew where the server has forgotten it."""

from polyvera.jobs.training_run import RunOperation
from polyvera.server.routes.tinker import futures
from polyvera.server.routes.tinker.futures import answered


def test_another_tenants_answer_is_not_there(acme, globex):
    run = acme.run()
    made = acme.post("/optim_step", model_id=run, seq_id=1, adam_params={})
    assert globex.http.post("/retrieve_future", json={"request_id": made["request_id"]}).status_code == 404
    assert acme.http.post("/retrieve_future", json={"request_id": "nonsense"}).status_code == 404
    assert acme.result(made)["metrics"]["step"] == 1 and acme.post("/cancel_future", **made_id(made)) == {}


def made_id(made):
    return {"request_id": made["request_id"]}


def test_an_answer_that_does_not_come_is_pending(acme, monkeypatch):
    monkeypatch.setattr(futures, "POLL_S", 0.05)
    run = acme.run()
    made = acme.post("/optim_step", model_id=run, seq_id=2, adam_params={})  # the first has not come
    found = acme.http.post("/retrieve_future", json=made_id(made))
    assert found.status_code == 408 and found.json()["queue_state"] == "active"
    acme.post("/optim_step", model_id=run, seq_id=1, adam_params={})
    assert acme.result(made)["metrics"]["step"] == 2


def test_a_sample_that_is_not_known_is_to_be_asked_for_anew(acme):
    asked = {"request_id": "sample-nobody:0", "allow_metadata_only": True}
    assert acme.http.post("/retrieve_future", json=asked).status_code == 410


def test_a_failure_says_whose_it_is():
    failed = RunOperation("r", 1, "forward", {}, 1.0, None, "broken", False)
    assert b'"category":"server"' in answered(failed, None).body
