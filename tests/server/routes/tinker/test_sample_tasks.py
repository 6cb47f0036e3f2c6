"""A sample is drawn once, however often it is asked for, and within what a tenant may have under way."""

import time

import pytest
from raw_tinker import RawTinker
from tuned_server import tuned

from polyvera.server.routes.tinker import sample_tasks

PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    with tuned(tmp_path_factory.mktemp("samples"), is_trained=False) as found:
        key = found.at.keys.add("acme", ["acme/*"], base=True)[0]
        yield RawTinker(found.at.url, key), found.at


def ask(client, seq, **more):
    asked = {"session_id": client.session(), "sampling_session_seq_id": 0, "base_model": "tiny"}
    id = client.post("/create_sampling_session", **asked)["sampling_session_id"]
    return {"sampling_session_id": id, "seq_id": seq, "prompt": PROMPT, **more}


def test_a_request_that_is_sent_twice_is_one(idle):
    client, at = idle
    asked = ask(client, 5 * 10**17, sampling_params={"max_tokens": 8, "stop": []})
    before = at.engine.stats().totals["answer_tokens"]
    one, other = client.post("/asample", **asked), client.post("/asample", **asked)
    assert one == other and client.result(one) == client.result(one)
    assert at.engine.stats().totals["answer_tokens"] - before == 8
    without = {**asked, "seq_id": None}
    assert client.post("/asample", **without) != client.post("/asample", **without)


def test_old_answers_are_forgotten(idle, monkeypatch):
    client, _ = idle
    first = client.post("/asample", **ask(client, 1, sampling_params={"max_tokens": 1}))
    assert client.result(first)
    monkeypatch.setattr(sample_tasks, "MAX_BYTES", 1)
    second = client.post("/asample", **ask(client, 1, sampling_params={"max_tokens": 1}))
    ends = time.monotonic() + 60
    while client.http.post("/retrieve_future", json={"request_id": second["request_id"]}).status_code != 410:
        assert time.monotonic() < ends
    assert client.http.post("/retrieve_future", json={"request_id": first["request_id"]}).status_code == 410


def test_more_than_a_request_may_ask_for_is_refused(idle):
    client, _ = idle
    asked = ask(client, 0, num_samples=64, sampling_params={"max_tokens": 100, "stop": []})
    found = [client.http.post("/asample", json={**asked, "seq_id": seq}) for seq in range(40)]
    statuses = [one.status_code for one in found]
    assert set(statuses) == {200, 429} and statuses[0] == 200
    for one in found:
        if one.is_success:
            given = {"request_id": one.json()["request_id"]}
            assert client.http.post("/cancel_future", json=given).is_success
            assert client.http.post("/retrieve_future", json=given).status_code == 410
    ends = time.monotonic() + 60
    while client.http.post("/asample", json={**asked, "seq_id": 99, "num_samples": 1}).status_code == 429:
        assert time.monotonic() < ends
        time.sleep(0.05)
