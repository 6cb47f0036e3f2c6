"""A session is opened by an SDK that was tested, lives by its beats, and is its tenant's alone."""

import pytest

from polyvera.errors import ServeError
from polyvera.server.routes.tinker.sessions import check_version, texts


def test_a_client_asks_for_its_flags_first(acme, globex):
    flags = acme.post("/client/config", sdk_version="0.38.2")
    assert flags["proto_compress_fwdbwd"] is False
    assert acme.post("/client/dynamic_config", sdk_version="0.38.0")["sample_cancel_enabled"] is True
    [model] = acme.get("/get_server_capabilities")["supported_models"]
    assert model["model_name"] == "tiny" and model["sampleable"] is True
    assert globex.get("/get_server_capabilities")["supported_models"][0]["sampleable"] is False
    assert acme.get("/healthz") == {"status": "ok"} and acme.post("/telemetry", events=[])["status"] == "accepted"
    refused = acme.http.post("/client/config", json={"sdk_version": "0.12.0"})
    assert refused.status_code == 400 and "was tested with tinker" in refused.json()["error"]["message"]


def test_a_session_is_its_tenants_alone(acme, globex):
    asked = {"tags": ["t"], "user_metadata": {"a": 1}, "sdk_version": "0.38.0", "display_name": "mine"}
    id = acme.post("/create_session", **asked)["session_id"]
    found = acme.get(f"/sessions/{id}")
    assert found["display_name"] == "mine" and found["user_metadata"]["a"] == "1" and found["training_run_ids"] == []
    assert id in acme.get("/sessions", limit=1000)["sessions"]
    assert acme.post("/session_heartbeat", session_id=id)["type"] == "session_heartbeat"
    for path, body in ((f"/sessions/{id}/finish", {}), ("/session_heartbeat", {"session_id": id})):
        assert globex.http.post(path, json=body).status_code == 404
    assert globex.http.get(f"/sessions/{id}").status_code == 404
    assert id not in globex.get("/sessions", limit=1000)["sessions"]
    acme.post(f"/sessions/{id}/finish", reason={"type": "success"}, detail=None)
    asked = {"session_id": id, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    assert acme.http.post("/create_model", json=asked).status_code == 404


def test_a_key_is_needed(training):
    assert training.at.http().post("/api/v1/client/config", json={"sdk_version": "0.38.0"}).status_code == 401


@pytest.mark.parametrize("version", ["", "1", "x.y", "0.12.1", "99.0.0", "²." * 2, "0." + "9" * 30])
def test_an_sdk_that_was_not_tested_is_refused(version):
    with pytest.raises(ServeError, match="pip install"):
        check_version(version)


def test_metadata_is_read_back_as_texts():
    assert texts({"a": 1, "b": "x"}) == {"a": "1", "b": "x"}
