"""Samples come from the engine with their log-probabilities, and only with weights of their tenant."""

import numpy as np
import pytest
from raw_tinker import supervised

from polyvera.server.routes.tinker.wire_messages import WIRE

PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}, {"type": "encoded_text", "tokens": [7]}]}


def sampler(client, **more):
    asked = {"session_id": client.session(), "sampling_session_seq_id": 0, **more}
    return client.post("/create_sampling_session", **asked)["sampling_session_id"]


def sampled(client, id, seq=0, **more):
    made = client.post("/asample", sampling_session_id=id, seq_id=seq, prompt=PROMPT, **more)
    assert len(made["sample_sequence_ids"]) == more.get("num_samples", 1)
    found = client.result(made)
    return found if isinstance(found, dict) else WIRE["SampleResponse"].FromString(found)


def tokens(sequence):
    return np.frombuffer(sequence.tokens, np.int32).tolist()


def logprobs(sequence):
    return np.frombuffer(sequence.logprobs, np.float32)


def test_the_base_is_sampled_from_with_a_seed(acme):
    id = sampler(acme, base_model="tiny")
    asked = {"num_samples": 3, "sampling_params": {"max_tokens": 4, "temperature": 1.0, "seed": 3, "stop": []}}
    first, again = sampled(acme, id, 0, **asked), sampled(acme, id, 1, **asked)
    assert [tokens(s) for s in first.sequences] == [tokens(s) for s in again.sequences]
    assert len({tuple(tokens(s)) for s in first.sequences}) > 1 and {s.stop_reason for s in first.sequences} == {1}
    assert all(len(logprobs(s)) == 4 and (logprobs(s) < 0).all() for s in first.sequences)
    assert acme.get(f"/samplers/{id}") == {"sampler_id": id, "base_model": "tiny", "model_path": None}


def test_what_is_saved_is_sampled_with_as_it_was_trained(acme, globex):
    run = acme.run()
    acme.passed(run, 1, supervised())
    acme.step(run, 2)
    saved = acme.result(acme.post("/save_weights_for_sampler", model_id=run, seq_id=3, path="w"))
    id = sampler(acme, model_path=saved["path"])
    found = sampled(acme, id, prompt_logprobs=True, topk_prompt_logprobs=2, sampling_params={"max_tokens": 2})
    trained = acme.passed(run, 4, supervised([[5, 6, 7]]), forward_only=True)
    scores = np.frombuffer(found.prompt_logprobs, np.float32)
    own = np.frombuffer(trained.loss_fn_outputs[0].fields["logprobs"].data, np.float32)
    assert np.isnan(scores[0]) and scores[1:] == pytest.approx(own, rel=1e-3)
    assert found.topk_prompt_logprobs.k == 2 and found.topk_prompt_logprobs.length == 3
    for path in ("/create_sampling_session",):
        asked = {"session_id": globex.session(), "sampling_session_seq_id": 0, "model_path": saved["path"]}
        assert globex.http.post(path, json=asked).status_code == 404
    theirs = {"sampling_session_id": id, "prompt": PROMPT}
    assert globex.http.post("/asample", json=theirs).status_code == 404


def test_weights_without_a_name_are_sampled_with_by_their_session(acme):
    session = acme.session()
    run = acme.run(session)
    asked = {"model_id": run, "seq_id": 1, "sampling_session_seq_id": 5, "kind": "inflight"}
    made = acme.result(acme.post("/save_weights_for_sampler", **asked))
    assert made["sampling_session_id"] == f"{session}:sample:5" and "path" not in made
    assert sampled(acme, made["sampling_session_id"], sampling_params={"max_tokens": 1}).sequences
    assert acme.get(f"/training_runs/{run}/checkpoints")["checkpoints"] == []
    assert acme.get(f"/sessions/{session}")["sampler_ids"] == [f"{session}:sample:5"]


def test_the_base_is_for_those_who_may_call_it(globex, acme):
    asked = {"session_id": globex.session(), "sampling_session_seq_id": 0, "base_model": "tiny"}
    assert globex.http.post("/create_sampling_session", json=asked).status_code == 403
    run = acme.run()
    saved = acme.result(acme.post("/save_weights", model_id=run, seq_id=1, path="w"))
    asked = {"session_id": acme.session(), "sampling_session_seq_id": 0, "model_path": saved["path"]}
    refused = acme.http.post("/create_sampling_session", json=asked)
    assert refused.status_code == 400 and "is to train from" in refused.json()["error"]["message"]


def test_a_prompt_that_does_not_fit_fails_alone(acme):
    id = sampler(acme, base_model="base")
    long = {"chunks": [{"type": "encoded_text", "tokens": [5] * 500}]}
    made = acme.post("/asample", sampling_session_id=id, seq_id=0, prompt=long)
    found = acme.result(made)
    assert found["category"] == "user" and "context" in found["error"]
    assert sampled(acme, id, 1, sampling_params={"max_tokens": 1}).sequences
