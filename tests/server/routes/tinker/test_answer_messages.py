"""Answers have every number where the SDK looks for it."""

import numpy as np
import pytest
from raw_tinker import logprobs_of

from polyvera.engine.generation.request import Answer, Token
from polyvera.jobs.pass_rows import logprobs_to_bytes
from polyvera.server.routes.tinker.answer_messages import pass_answer, sample_answer
from polyvera.server.routes.tinker.wire_messages import WIRE


def read(kind, data):
    message = WIRE[kind]()
    message.ParseFromString(data)
    return message


def test_a_pass_has_its_loss_and_its_logprobs():
    rows = [np.asarray([1, 2, 3], np.float32), np.asarray([4], np.float32)]
    message = read("ForwardBackwardOutput", pass_answer(2.5, logprobs_to_bytes(rows, [1, 1])))
    assert message.metrics["loss:sum"] == 2.5
    assert [row.tolist() for row in logprobs_of(message)] == [[1, 2, 3], [4]]
    wide = read("ForwardBackwardOutput", pass_answer(2.5, logprobs_to_bytes([*rows, rows[0][:2]], [1, 1, 2])))
    assert [record.num_datums for record in wide.loss_fn_outputs] == [1, 1, 1]


def test_a_sample_has_its_tokens_and_the_prompts_scores():
    answer = Answer([Token(5, -0.5, ((5, -0.5),))], "x", "stop", (Token(7, -1.5, ((8, -0.1), (7, -1.5))),))
    message = read("SampleResponse", sample_answer([answer], 2, 1, 3))
    [sequence] = message.sequences
    assert sequence.stop_reason == 0 and np.frombuffer(sequence.tokens, np.int32).tolist() == [5]
    assert np.frombuffer(sequence.topk_sampled_logprobs.token_ids, np.int32).tolist() == [5, 0]
    assert np.frombuffer(sequence.topk_sampled_logprobs.logprobs, np.float32)[1] == pytest.approx(-99999.0)
    scores = np.frombuffer(message.prompt_logprobs, np.float32)
    assert np.isnan(scores[0]) and scores[1] == -1.5 and message.prompt_cache_hit_tokens == 3
    assert np.frombuffer(message.topk_prompt_logprobs.token_ids, np.int32).tolist() == [0, 8]
    assert not read("SampleResponse", sample_answer([answer], 0, None, 0)).prompt_logprobs
