"""The routes are there where a server trains; and the SDK itself works against them unchanged."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from raw_tinker import ROWS
from tiny_server import Served

try:
    import tinker
    from tinker import types
except ImportError:
    tinker = None
with_sdk = pytest.mark.skipif(tinker is None, reason="the tinker package is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_server_that_does_not_train_has_no_such_routes(at: Served):
    assert at.http().post("/api/v1/client/config", json={"sdk_version": "0.38.0"}).status_code == 404


@pytest.fixture
def service(training, acme, monkeypatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    return tinker.ServiceClient(base_url=training.at.url, api_key=acme.http.headers["x-api-key"])


def datum(row, **inputs):
    given = {"target_tokens": types.TensorData(data=row[1:], dtype="int64", shape=[len(row) - 1])}
    for name, values in inputs.items():
        given[name] = types.TensorData(data=list(values), dtype="float32", shape=[len(row) - 1])
    return types.Datum(model_input=types.ModelInput.from_ints(row[:-1]), loss_fn_inputs=given)


def supervised():
    return [datum(row, weights=[1.0] * (len(row) - 1)) for row in ROWS]


ADAM = {"learning_rate": 0.05}


def losses(client, num):
    found = []
    for _ in range(num):
        passed = client.forward_backward(supervised(), "cross_entropy")
        client.optim_step(types.AdamParams(**ADAM)).result()
        found.append(passed.result().metrics["loss:sum"])
    return found


@with_sdk
def test_supervised_training_is_saved_and_goes_on(service):
    client = service.create_lora_training_client("tiny", rank=4, seed=1).result()
    assert client.get_info().lora_rank == 4
    first = losses(client, 4)
    assert first[-1] < first[0]
    saved = client.save_state("four").result().path
    after = losses(client, 2)
    again = service.create_training_client_from_state_with_optimizer(saved).result()
    assert losses(again, 2) == pytest.approx(after, rel=1e-5)
    with pytest.raises(tinker.RequestFailedError, match="must be one of"):
        client.forward_backward(supervised(), "nope").result()
    assert client.forward(supervised(), "cross_entropy").result().metrics["loss:sum"] < after[0]


@with_sdk
def test_many_rows_go_in_parts_that_are_made_in_order(service):
    client = service.create_lora_training_client("tiny", rank=4).result()
    found = client.forward(supervised() * 600, "cross_entropy").result()
    assert len(found.loss_fn_outputs) == 1200


@with_sdk
def test_samples_reward_and_reinforce(service):
    client = service.create_lora_training_client("tiny", rank=4).result()
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt, params = types.ModelInput.from_ints([5, 6, 7]), types.SamplingParams(max_tokens=4, temperature=1.0, stop=[])
    found = sampler.sample(prompt, num_samples=4, sampling_params=params).result()
    data = []
    for i, sequence in enumerate(found.sequences):
        row, zeros = [5, 6, 7, *sequence.tokens], [0.0, 0.0]
        data.append(datum(row, logprobs=[*zeros, *sequence.logprobs], advantages=[*zeros, *[i - 1.5] * 4]))
    for loss in ("importance_sampling", "ppo", "cispo", "dro"):
        passed = client.forward_backward(data, loss).result()
        if loss == "importance_sampling":  # at once, so that every ratio is 1
            assert passed.metrics["loss:sum"] == pytest.approx(-sum(4 * (i - 1.5) for i in range(4)), abs=1e-3)
    assert client.optim_step(types.AdamParams(**ADAM)).result().metrics["step"] == 1
    assert sampler.compute_logprobs(prompt).result()[0] is None


@with_sdk
def test_a_loss_of_the_clients_own(service):
    client = service.create_lora_training_client("tiny", rank=4).result()

    def squared(data, logprobs):
        loss = sum((one**2).sum() for one in logprobs)
        return loss, {"squares:sum": float(loss)}

    found = client.forward_backward_custom(supervised(), squared).result()
    assert found.metrics["squares:sum"] > 0
    assert client.optim_step(types.AdamParams(**ADAM)).result().metrics["grad_norm"] > 0


@with_sdk
def test_runs_and_checkpoints_are_listed_and_deleted(service, training, acme):
    client = service.create_lora_training_client("tiny", rank=4).result()
    path = client.save_weights_for_sampler("w").result().path
    rest = tinker.RestClient(base_url=training.at.url, api_key=acme.http.headers["x-api-key"])
    assert client.model_id in [run.training_run_id for run in rest.list_training_runs().result().training_runs]
    assert [one.tinker_path for one in rest.list_checkpoints(client.model_id).result().checkpoints] == [path]
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(client.model_id).result().checkpoints == []


@with_sdk
def test_many_clients_share_the_batches(service):
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda i: service.create_lora_training_client("tiny", rank=4).result(), range(8)))
        found = list(pool.map(lambda client: losses(client, 3), clients))
    for own in found:
        assert own == pytest.approx(found[0], rel=1e-4)
