"""Calls are made once, in order, and give what their losses say."""

import gzip

import numpy as np
import pytest
from raw_tinker import BINARY, ROWS, datum, logprobs_of, pass_body, supervised


def policy(rows, logprobs, advantage=1.0):
    return [
        datum(row[:-1], row[1:], logprobs=own.tolist(), advantages=[advantage] * len(own))
        for row, own in zip(rows, logprobs, strict=True)
    ]


def test_a_run_learns_and_a_forward_pass_changes_nothing(acme):
    run = acme.run()
    first = acme.passed(run, 1, supervised())
    again = acme.passed(run, 2, supervised(), forward_only=True)
    assert again.metrics["loss:sum"] == pytest.approx(first.metrics["loss:sum"])
    made = acme.step(run, 3)
    assert made["type"] == "optim_step" and made["metrics"]["step"] == 1 and made["metrics"]["grad_norm"] > 0
    for seq in range(4, 10, 2):
        last = acme.passed(run, seq, supervised())
        acme.step(run, seq + 1)
    assert last.metrics["loss:sum"] < first.metrics["loss:sum"]
    assert [len(row) for row in logprobs_of(last)] == [4, 2]
    assert -sum(float(row.sum()) for row in logprobs_of(last)) == pytest.approx(last.metrics["loss:sum"], rel=1e-5)


def test_a_call_that_is_sent_twice_counts_once(acme):
    run = acme.run()
    body = pass_body(run, 1, supervised())
    one, other = acme.send(body).json(), acme.send(body).json()
    assert one == other and acme.result(one) == acme.result(other)
    norm = acme.step(run, 2)["metrics"]["grad_norm"]
    twice = acme.run()
    for seq in (1, 2):
        acme.passed(twice, seq, supervised())
    assert acme.step(twice, 3)["metrics"]["grad_norm"] == pytest.approx(2 * norm, rel=1e-4)


def test_calls_that_arrive_out_of_order_are_made_in_order(acme):
    run = acme.run()
    second = acme.post("/optim_step", model_id=run, seq_id=2, adam_params={"learning_rate": 0.05})
    acme.send(pass_body(run, 1, supervised()))
    assert acme.result(second)["metrics"]["grad_norm"] > 0


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/optim_step", {"adam_params": {"learning_rate": -1.0}}),
        ("/optim_step", {"adam_params": {"eps": 0.0}}),
        ("/save_weights", {"path": "../x"}),
        ("/save_weights", {"made_up": 1}),
        ("/save_weights_for_sampler", {}),
        ("/load_weights", {"path": "tinker://x"}),
        ("/load_weights", {"path": "tinker://x", "optimizer": True, "made_up": 1}),
    ],
)
def test_a_call_that_is_refused_has_its_place(acme, path, given):
    run = acme.run()
    acme.passed(run, 1, supervised())
    assert acme.http.post(path, json={"model_id": run, "seq_id": 2, **given}).status_code == 400
    assert acme.http.post(path, json={"seq_id": 3, **given}).status_code == 400
    asked = acme.result({"request_id": f"{run}:2"})
    assert asked["category"] == "user" and asked["error"]
    assert acme.step(run, 3)["metrics"]["step"] == 1


def test_a_key_that_comes_twice_loses_no_place(acme):
    run = acme.run()
    twice = f'{{"model_id": "{run}", "seq_id": 1, "path": "a", "path": "b"}}'
    said = acme.http.post("/save_weights", content=twice, headers={"content-type": "application/json"})
    assert said.status_code == 400 and "comes twice" in said.text
    assert "comes twice" in acme.result({"request_id": f"{run}:1"})["error"]


def test_a_body_that_cannot_be_unpacked_is_refused_at_once(acme):
    packed = gzip.compress(b'{"model_id": "x", "seq_id": 1}')[:-4]
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    for path in ("/optim_step", "/save_weights", "/save_weights_for_sampler", "/load_weights"):
        said = acme.http.post(path, content=packed, headers=headers, timeout=10)
        assert said.status_code == 400 and "gzip" in said.text


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro"])
def test_losses_of_policies_are_sums(acme, loss):
    run = acme.run()
    logprobs = logprobs_of(acme.passed(run, 1, supervised(), forward_only=True))
    found = acme.passed(run, 2, policy(ROWS, logprobs), loss)
    plain = (
        -sum(map(len, logprobs)) if loss in ("importance_sampling", "ppo") else sum(-float(r.sum()) for r in logprobs)
    )
    assert found.metrics["loss:sum"] == pytest.approx(plain, rel=1e-4)
    wrong = acme.passed(run, 3, supervised(), loss)
    assert wrong["category"] == "user" and "leave it out" in wrong["error"]
    assert acme.step(run, 4)["metrics"]["step"] == 1


def test_several_targets_of_a_position_are_summed(acme):
    run = acme.run()
    rows = [datum([5, 6], [[6, 7], [8, 9]], weights=[[0.5, 0.5], [1.0, 0.0]])]
    found = acme.passed(run, 1, rows)
    [own] = logprobs_of(found)
    expected = -(0.5 * own[0].sum() + own[1, 0])
    assert own.shape == (2, 2) and found.metrics["loss:sum"] == pytest.approx(float(expected), rel=1e-5)


def test_what_is_wrong_fails_alone(acme):
    run = acme.run()
    beyond = acme.passed(run, 1, [datum([10**6, 2], [3, 4], weights=[1.0, 1.0])])
    assert beyond["category"] == "user" and "is not a token" in beyond["error"]
    unknown = acme.passed(run, 2, supervised(), "stable_reinforce")
    assert "must be one of: cross_entropy" in unknown["error"]
    assert np.isfinite(acme.passed(run, 3, supervised()).metrics["loss:sum"])
    for body in ({"model_id": run, "adam_params": {"beta1": 2.0}}, {"model_id": run}, {"model_id": run, "x": 1}):
        assert acme.http.post("/optim_step", json=body).status_code == 400
    assert acme.send(b"\xff").status_code == 400
    plain = acme.http.post("/forward_backward", content=b"x", headers={"content-type": "text/plain"})
    assert plain.status_code == 415 and BINARY in plain.json()["error"]["message"]


def test_another_tenants_run_takes_no_calls(acme, globex):
    run = acme.run()
    assert globex.send(pass_body(run, 1, supervised())).status_code == 404
    for path in ("/optim_step", "/save_weights", "/save_weights_for_sampler", "/load_weights"):
        body = {"model_id": run, "seq_id": 1}
        body |= {
            "/optim_step": {"adam_params": {}},
            "/save_weights": {"path": "x"},
            "/save_weights_for_sampler": {"path": "x"},
            "/load_weights": {"path": "tinker://x/weights/y", "optimizer": False},
        }[path]
        assert globex.http.post(path, json=body).status_code == 404


def test_what_is_saved_is_gone_on_from(acme, globex):
    session = acme.session()
    run = acme.run(session)
    acme.passed(run, 1, supervised())
    acme.step(run, 2)
    saved = acme.result(acme.post("/save_weights", model_id=run, seq_id=3, path="one"))
    assert saved["path"] == f"tinker://{run}/weights/one" and saved["type"] == "save_weights"
    taken = acme.result(acme.post("/save_weights", model_id=run, seq_id=4, path="one"))
    assert "saved already" in taken["error"]
    before = acme.passed(run, 5, supervised(), forward_only=True).metrics["loss:sum"]
    asked = {"session_id": session, "model_seq_id": 1, "path": saved["path"], "optimizer": True}
    made = acme.result(acme.post("/load_weights", **asked))
    assert made["type"] == "load_weights" and made["model_id"] == f"{session}:train:1"
    after = acme.passed(made["model_id"], 1, supervised(), forward_only=True).metrics["loss:sum"]
    assert after == pytest.approx(before, rel=1e-6)
    acme.result(acme.post("/load_weights", model_id=run, seq_id=6, path=saved["path"], optimizer=False))
    assert acme.step(run, 7)["metrics"]["step"] == 1
    theirs = globex.http.post("/load_weights", json=asked | {"session_id": globex.session()})
    assert theirs.status_code == 404
