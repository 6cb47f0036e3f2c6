"""What was saved is listed, described, given an end and deleted, by its tenant alone."""

import pytest


@pytest.fixture(scope="module")
def saved(acme):
    run = acme.run()
    first = acme.post("/save_weights", model_id=run, seq_id=1, path="one", user_metadata={"a": "b"}, ttl_seconds=3600)
    second = acme.post("/save_weights_for_sampler", model_id=run, seq_id=2, path="two")
    return run, acme.result(first)["path"], acme.result(second)["path"]


def test_what_was_saved_is_listed_and_described(acme, saved):
    run, training, sampler = saved
    found = acme.get(f"/training_runs/{run}/checkpoints")
    last, first = found["checkpoints"]
    assert (first["checkpoint_id"], last["checkpoint_id"]) == ("weights/one", "sampler_weights/two")
    assert first["user_metadata"] == {"a": "b"} and first["expires_at"] and first["size_bytes"] > 0
    assert (first["tinker_path"], last["tinker_path"]) == (training, sampler) and found["cursor"]["total_count"] == 2
    assert acme.get("/checkpoints", limit=1)["checkpoints"] == [last]
    shown = acme.get(f"/training_runs/{run}")
    assert shown["last_checkpoint"] == first and shown["last_sampler_checkpoint"] == last
    info = acme.post("/weights_info", tinker_path=training)
    assert info["base_model"] == "tiny" and info["lora_rank"] == 4


def test_another_tenants_weights_are_not_there(globex, saved):
    run, training, _ = saved
    assert globex.http.post("/weights_info", json={"tinker_path": training}).status_code == 404
    assert globex.http.get(f"/training_runs/{run}/checkpoints").status_code == 404
    assert globex.http.delete(f"/training_runs/{run}/checkpoints/weights/one").status_code == 404
    assert globex.http.put(f"/training_runs/{run}/checkpoints/weights/one/ttl", json={}).status_code == 404
    assert globex.get("/checkpoints")["checkpoints"] == []


def test_weights_are_kept_shared_with_nobody_and_deleted(acme, saved):
    run, training, _ = saved
    one = f"/training_runs/{run}/checkpoints/weights/one"
    assert acme.http.put(f"{one}/ttl", json={"ttl_seconds": None}).status_code == 204
    assert acme.get(f"/training_runs/{run}/checkpoints")["checkpoints"][1]["expires_at"] is None
    assert acme.http.post(f"{one}/publish").status_code == 403
    assert acme.http.delete(one).status_code == 204 and acme.http.delete(one).status_code == 404
    asked = {"session_id": acme.session(), "model_seq_id": 0, "path": training, "optimizer": True}
    assert acme.http.post("/load_weights", json=asked).status_code == 404


def test_an_adapter_goes_with_its_weights_at_once(acme, saved, training):
    run, _, sampler = saved
    name = training.tuning.weights.get("acme", sampler).adapter
    asked = {"model": name, "prompt": "the true thing", "max_tokens": 2}
    with training.at.http(training.acme.api_key) as http:
        assert http.post("/v1/completions", json=asked).status_code == 200
        assert acme.http.delete(f"/training_runs/{run}/checkpoints/sampler_weights/two").status_code == 204
        assert http.post("/v1/completions", json=asked).status_code == 404
        assert name not in {one["id"] for one in http.get("/v1/adapters").json()["data"]}
