"""Every field has a bound, and stops and seeds mean what the SDK means by them."""

import pytest
from pydantic import ValidationError

from polyvera.server.routes.tinker import bodies

SAMPLE = {"sampling_session_id": "s", "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}}


def sample(**more):
    return bodies.SampleBody.model_validate({**SAMPLE, **more})


def test_every_sample_has_a_seed_of_its_own_and_the_prompt_is_scored_once():
    params = sample(num_samples=3, prompt_logprobs=True, sampling_params={"seed": 4, "top_k": -1}).all_params()
    assert [one.seed for one in params] == [4, 5, 6] and [one.prompt_logprobs for one in params] == [0, None, None]
    assert params[0].logprobs == 0 and params[0].top_k == 0 and sample().prompt.tokens == [1, 2]
    assert sample(topk_prompt_logprobs=3).num_prompt_top == 3 and sample().num_prompt_top is None


@pytest.mark.parametrize(
    ("stop", "texts", "ids", "ignores"),
    [
        (None, (), (), False),
        ([], (), (), True),
        ("a", ("a",), (), False),
        (["a"], ("a",), (), False),
        ([3], (), (3,), False),
    ],
)
def test_stops_are_texts_tokens_or_none_at_all(stop, texts, ids, ignores):
    [params] = sample(sampling_params={"stop": stop}).all_params()
    assert (params.stop, params.stop_ids, params.ignore_eos) == (texts, ids, ignores)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (bodies.SampleBody, {**SAMPLE, "num_samples": 65}),
        (bodies.SampleBody, {**SAMPLE, "sampling_params": {"temperature": -1.0}}),
        (bodies.SampleBody, {**SAMPLE, "prompt": {"chunks": [{"type": "image", "tokens": []}]}}),
        (bodies.AdamBody, {"beta1": 1.0}),
        (bodies.AdamBody, {"learning_rate": float("nan")}),
        (bodies.LoraConfigBody, {"rank": 0}),
        (bodies.OptimizerConfigBody, {"type": "dimuon"}),
        (bodies.SaveWeightsBody, {"model_id": "m", "path": "../x"}),
        (bodies.SaveWeightsBody, {"model_id": "m", "path": "a/b"}),
        (bodies.SaveForSamplerBody, {"model_id": "m"}),
        (bodies.LoadWeightsBody, {"path": "tinker://a/weights/b", "optimizer": True}),
        (
            bodies.LoadWeightsBody,
            {"path": "x", "optimizer": True, "model_id": "m", "session_id": "s", "model_seq_id": 1},
        ),
        (bodies.SessionBody, {"sdk_version": "1" * 65}),
    ],
)
def test_what_cannot_be_is_refused(kind, given):
    with pytest.raises(ValidationError):
        kind.model_validate(given)


@pytest.mark.parametrize("given", [{"prompt_alt_tokens_k": 2}, {"record_stability_info": True}, {"nonsense": 1}])
def test_what_is_not_done_is_refused(given):
    with pytest.raises(ValidationError, match="leave it out"):
        sample(**given)


def test_kinds_of_layers_are_those_that_may_be_trained():
    assert bodies.LoraConfigBody(rank=3, train_mlp=False).trained == ("train_unembed", "train_attn")
