"""Tokens are chosen as transformers chooses them, and each request by its own stream of random numbers."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_serve import LONGEST_WAIT, Solo, all_of, make_prompt, publish, submit
from transformers import LlamaForCausalLM, LogitsProcessorList, PreTrainedTokenizerFast
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polyvera.adapter.adapter import Adapter
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import LENGTH, STOP, Answer, SamplingParams
from polyvera.engine.generation.sampler import RequestSampler, Scores, draw, sample
from polyvera.engine.limits import Limits
from polyvera.errors import NonFiniteError
from polyvera.store.reference import AdapterRef

NUM_DRAWS = 4000
PROMPT = make_prompt(5, 20, 20)


@pytest.fixture(scope="module")
def served(
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    trained: list[Adapter],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Generator, list[AdapterRef]]]:
    registry, refs = publish(Path(tmp_path_factory.mktemp("store")), trained[:4])
    with Generator(llama, tokenizer, registry, Limits(max_rows=8, chunk=64)) as engine:
        yield engine, refs


@pytest.fixture(scope="module")
def engine(served: tuple[Generator, list[AdapterRef]]) -> Generator:
    return served[0]


def asked(engine: Generator, num: int = 12, **given: Any) -> Answer:
    return engine.answer(PROMPT, None, SamplingParams(max_tokens=num, **given)).result(LONGEST_WAIT)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"repetition_penalty": 0.6}, {"repetition_penalty": 0.6}),
        ({"bias": ((69, -20.0), (88, 9.0))}, {"sequence_bias": {(69,): -20.0, (88,): 9.0}}),
        ({"min_tokens": 12}, {"min_new_tokens": 12}),
        ({"ignore_eos": True}, {"eos_token_id": 10_000}),
        (
            {"bias": ((157, 30.0),), "min_tokens": 4, "repetition_penalty": 1.2},
            {"sequence_bias": {(157,): 30.0}, "min_new_tokens": 4, "repetition_penalty": 1.2},
        ),
    ],
)
def test_greedy_choices_are_those_of_generate(engine: Generator, solo: Solo, ours: Any, theirs: Any) -> None:
    expected = solo.answers(None, PROMPT, 12, **theirs)
    assert asked(engine, **ours).ids == expected
    assert expected != solo.answers(None, PROMPT, 12) or "min_tokens" in ours or "ignore_eos" in ours


@pytest.mark.parametrize("penalties", [(2.0, 0.0), (0.0, 1.5), (-2.0, 0.0), (1.0, -1.0)])
def test_presence_and_frequency_count_in_the_answer_alone(
    engine: Generator, solo: Solo, penalties: tuple[float, float]
) -> None:
    presence, frequency = penalties
    answer: list[int] = []
    for _ in range(12):
        logits = solo.logits(None, [*PROMPT, *answer])[-1]
        for token, count in Counter(answer).items():
            logits[token] -= presence + frequency * count
        answer.append(int(logits.argmax()))
    found = asked(engine, presence_penalty=presence, frequency_penalty=frequency, ignore_eos=False)
    assert found.ids == answer[: len(found.ids)] and (len(found.ids) == 12 or found.ids[-1] in engine.ends)


@pytest.mark.parametrize("given", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-7}])
def test_one_choice_left_is_the_greedy_one(engine: Generator, solo: Solo, given: Any) -> None:
    assert asked(engine, **{"temperature": 1.3, **given}).ids == solo.answers(None, PROMPT, 12)


CHOICES = [
    {},
    {"temperature": 0.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 6, "top_p": 0.6},
    {"temperature": 2.5, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("given", CHOICES, ids=str)
def test_draws_follow_the_distribution_that_transformers_leaves(given: dict[str, float]) -> None:
    logits = 1.5 * torch.randn(20, generator=torch.Generator().manual_seed(3))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(given.get("temperature", 1.0))])
    for name, warper in (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)):
        if name in given:
            warpers.append(warper(given[name]))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].softmax(-1)
    params = {"temperature": 1.0, **given}
    draws = [
        RequestSampler(SamplingParams(seed=s, **params), [0], frozenset()).token(logits, []).id
        for s in range(NUM_DRAWS)
    ]
    counts = torch.bincount(torch.tensor(draws), minlength=20).double()
    assert not counts[expected == 0].any()
    likely = expected * NUM_DRAWS > 5
    far = (counts - expected * NUM_DRAWS)[likely].pow(2) / (expected * NUM_DRAWS)[likely]
    freedom = int(likely.sum()) - 1
    assert float(far.sum()) < freedom + 5 * (2 * freedom) ** 0.5 + 1


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_draws_in_one_pass_what_each_row_draws_alone(seed: int) -> None:
    generator, pick = torch.Generator().manual_seed(seed), random.Random(seed)
    logits = 3 * torch.randn(24, (20, 300, 3000)[seed % 3], generator=generator)
    ranges = {"temperature": (0.3, 1.0, 1.7), "top_k": (0, 1, 5, 10**6), "top_p": (1.0, 0.9, 0.3, 1e-6)}
    ranges["min_p"] = (0.0, 0.0, 0.1, 1.0)
    params = [SamplingParams(seed=i, **{k: pick.choice(v) for k, v in ranges.items()}) for i in range(24)]
    together, alone = ([RequestSampler(p, [0], frozenset()) for p in params] for _ in range(2))
    for _ in range(3):  # the streams go on alike
        found = draw(logits, together).tolist()
        assert found == [sampler.token(row, []).id for sampler, row in zip(alone, logits, strict=True)]


def test_rows_of_a_kind_each_are_chosen_as_they_ask() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    logits[4, 7] = torch.nan
    asked = [{}, {"temperature": 1.0, "seed": 2}, {"logprobs": 1}, {"temperature": 0.9, "seed": 3, "bias": ((4, 2.0),)}]
    samplers = [[RequestSampler(SamplingParams(**p), [0], frozenset()) for p in (*asked, asked[1])] for _ in range(2)]
    found = sample(Scores.of(logits), samplers[0], [[]] * 5)
    assert found[:4] == [one.token(row, []) for one, row in zip(samplers[1][:4], logits, strict=False)]
    assert isinstance(found[4], NonFiniteError)


def test_a_seeded_answer_does_not_depend_on_what_else_is_in_the_batch(
    served: tuple[Generator, list[AdapterRef]],
) -> None:
    engine, refs = served
    wanted = [SamplingParams(max_tokens=12, temperature=1.2, top_p=0.95, seed=seed) for seed in range(6)]
    alone = [engine.answer(PROMPT, refs[i % 4], params).result(LONGEST_WAIT).ids for i, params in enumerate(wanted)]
    others = [
        submit(engine, make_prompt(s), refs[s % 4], SamplingParams(max_tokens=30, temperature=1.0)) for s in range(9)
    ]
    mixed = all_of(engine.answer(PROMPT, refs[i % 4], params) for i, params in enumerate(wanted))
    for _, heard in others:
        heard.wait()
    assert [answer.ids for answer in mixed] == alone and len(set(map(tuple, alone))) == 6


def test_answers_without_a_seed_differ(engine: Generator) -> None:
    assert len({tuple(asked(engine, temperature=1.5, ignore_eos=True).ids) for _ in range(4)}) == 4


@pytest.mark.parametrize("given", [{}, {"temperature": 1.0, "seed": 4, "top_p": 0.8}, {"bias": ((70, 9.0),)}])
def test_logprobs_are_those_of_the_model_itself(served: Any, solo: Solo, trained: list[Adapter], given: Any) -> None:
    engine, refs = served
    params = SamplingParams(max_tokens=8, logprobs=4, **given)
    answer = engine.answer(PROMPT, refs[0], params).result(LONGEST_WAIT)
    logprobs = solo.logits(trained[0], [*PROMPT, *answer.ids]).log_softmax(-1)[len(PROMPT) - 1 : -1]
    for token, expected in zip(answer.tokens, logprobs, strict=True):
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-3)
        values, ids = expected.topk(4)
        assert [t for t, _ in token.top] == ids.tolist()
        assert [p for _, p in token.top] == pytest.approx(values.tolist(), abs=1e-3)


def test_logprobs_without_alternatives_and_none_at_all(engine: Generator) -> None:
    assert all(t.logprob is not None and not t.top for t in asked(engine, logprobs=0).tokens)
    assert all(t.logprob is None and not t.top for t in asked(engine).tokens)
    assert len(asked(engine, logprobs=20).tokens[0].top) == 20


def test_an_answer_stops_before_a_text_that_straddles_tokens(
    engine: Generator, solo: Solo, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = solo.answers(None, PROMPT, 30)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    for start in range(2, len(whole) - 4, 3):
        stop = whole[start : start + 3]
        _, heard = submit(engine, PROMPT, None, SamplingParams(max_tokens=30, stop=("never said", stop)))
        assert heard.wait().finish_reason == STOP
        assert "".join(heard.pieces) == whole[: whole.find(stop)]
        assert heard.ids == ids[: len(heard.ids)] and stop in tokenizer.decode(heard.ids)


def test_an_answer_stops_at_a_token_that_is_asked_for(engine: Generator, solo: Solo, tokenizer: Any) -> None:
    ids = solo.answers(None, PROMPT, 12)
    stop = next(token for i, token in enumerate(ids) if i > 3 and token not in ids[:i])
    at = ids.index(stop)
    answer = asked(engine, stop_ids=(stop,))
    assert answer.ids == ids[: at + 1] and answer.finish_reason == STOP
    assert answer.text == tokenizer.decode(ids[:at], skip_special_tokens=True)
    assert stop not in asked(engine, stop_ids=(stop,), min_tokens=12).ids


def test_an_answer_is_as_long_as_asked_or_as_the_context_holds(engine: Generator) -> None:
    for num in (1, 2, 9):
        answer = asked(engine, num, ignore_eos=True)
        assert len(answer.ids) == num and answer.finish_reason == LENGTH
    longest = engine.answer(PROMPT, None, SamplingParams(ignore_eos=True)).result(LONGEST_WAIT)
    assert len(longest.ids) == engine.max_context - len(PROMPT) and longest.finish_reason == LENGTH


@pytest.mark.parametrize("given", [{}, {"temperature": 1.4, "seed": 1}, {"temperature": 1.4, "seed": 2}])
def test_the_pieces_told_join_to_the_text_of_the_tokens(
    engine: Generator, tokenizer: PreTrainedTokenizerFast, given: Any
) -> None:
    _, heard = submit(engine, PROMPT, None, SamplingParams(max_tokens=60, ignore_eos=True, **given))
    heard.wait()
    assert "".join(heard.pieces) == tokenizer.decode(heard.ids, skip_special_tokens=True)
    assert len(heard.outputs) == len(heard.ids) == 60


def test_numbers_that_are_not_finite_fail_their_own_row() -> None:
    logits = torch.zeros(4, 6)
    logits[1, 3], logits[2, 0], logits[3, 1:] = torch.nan, torch.inf, -torch.inf
    choices = [RequestSampler(SamplingParams(), [0], frozenset())] * 4
    tokens = sample(Scores.of(logits + torch.arange(6)), choices, [[]] * 4)
    assert [getattr(token, "id", None) for token in tokens] == [5, None, None, 0]
