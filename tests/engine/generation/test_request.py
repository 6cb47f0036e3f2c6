"""What may be asked for, and what a request that cannot be answered is told."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_serve import (
    LONGEST_WAIT,
    SMALL,
    Solo,
    all_of,
    assert_nothing_is_left,
    make_adapter,
    make_llama,
    make_prompt,
    publish,
    submit,
    until,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import CANCELLED, FAILED, MAX_STOPS, Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import (
    BusyError,
    ClosedError,
    EngineError,
    FingerprintError,
    FormatError,
    LayoutError,
    NotFoundError,
    PolyveraError,
    SamplingError,
    StoreError,
)
from polyvera.store.reference import AdapterRef

LONG = SamplingParams(max_tokens=140, ignore_eos=True)
SHORT = SamplingParams(max_tokens=6)
PROMPT = make_prompt(1, 10, 10)


@pytest.fixture(scope="module")
def engine(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[Generator]:
    with Generator(copy.deepcopy(llama), tokenizer, limits=Limits(max_rows=2, prefix_bytes=0)) as engine:
        yield engine


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"seed": 10**400},
        {"min_tokens": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logprobs": 21},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * (MAX_STOPS + 1)},
        {"bias": ((0, 101.0),)},
        {"bias": ((0, float("nan")),)},
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_refused_by_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(SamplingError, match="logit_bias" if name == "bias" else name):
        SamplingParams(**given)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], SHORT, "has no tokens"),
        ([3, -1], SHORT, "a token that is not from 0 to 264"),
        ([265], SHORT, "a token that is not from 0 to 264"),
        ([3] * 160, SamplingParams(), "more than the 160 of this engine's context"),
        ([3] * 155, SHORT, "more than the 160 of this engine's context"),
        ([3], SamplingParams(stop_ids=(265,)), "265 is not a token"),
        ([3], SamplingParams(bias=((-1, 1.0),)), "-1 is not a token"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_at_once(
    engine: Generator, prompt: list[int], params: SamplingParams, message: str
) -> None:
    with pytest.raises(SamplingError, match=message):
        engine.answer(prompt, None, params)
    assert engine._queue.num_open == 0


def test_the_context_can_be_filled_to_the_last_token(engine: Generator, solo: Solo) -> None:
    prompt = make_prompt(3, 159, 159)
    assert engine.answer(prompt).result(LONGEST_WAIT).ids == solo.answers(None, prompt, 1)
    assert_nothing_is_left(engine)


def test_cancelled_requests_end_wherever_they_are(engine: Generator, solo: Solo) -> None:
    running = [submit(engine, PROMPT, None, LONG) for _ in range(2)]
    waiting = [submit(engine, PROMPT, None, LONG) for _ in range(3)]
    other = engine.answer(make_prompt(2), None, SHORT)
    until(lambda: all(heard.ids for _, heard in running))
    for request, _ in (waiting[1], *running, waiting[0], waiting[2]):
        engine.cancel(request)
        engine.cancel(request)
    for request, heard in (*running, *waiting):
        assert heard.wait().finish_reason == CANCELLED and heard.outputs[-1].error is None and request.finished
    assert other.result(LONGEST_WAIT).ids == solo.answers(None, make_prompt(2), 6)
    assert_nothing_is_left(engine)
    engine.cancel(running[0][0])  # long over
    assert engine.answer(PROMPT, None, SHORT).result(LONGEST_WAIT).ids == solo.answers(None, PROMPT, 6)
    assert len(running[0][1].outputs) == 1 + len(running[0][1].ids)


def test_a_request_that_is_cancelled_as_it_comes_is_cancelled(engine: Generator) -> None:
    for _ in range(200):
        request, heard = submit(engine, PROMPT, None, LONG)
        engine.cancel(request)
        assert heard.wait().finish_reason == CANCELLED
    assert_nothing_is_left(engine)


def test_a_listener_that_fails_is_cancelled_and_others_go_on(engine: Generator, solo: Solo, caplog: Any) -> None:
    told: list[RequestOutput] = []

    def on_output(output: RequestOutput) -> None:
        told.append(output)
        raise RuntimeError("the listener is gone")

    engine.submit(Request(PROMPT, None, LONG, on_output))
    assert engine.answer(PROMPT, None, SHORT).result(LONGEST_WAIT).ids == solo.answers(None, PROMPT, 6)
    until(lambda: told and told[-1].finish_reason)
    assert told[-1].finish_reason == CANCELLED and len(told) < 10
    assert_nothing_is_left(engine)


def test_too_many_waiting_requests_are_turned_away(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    with Generator(llama, tokenizer, limits=Limits(max_rows=1, max_waiting=2)) as engine:
        first, heard = submit(engine, PROMPT, None, LONG)
        until(lambda: heard.ids)
        waiting = [engine.answer(PROMPT, None, SHORT) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait already"):
            engine.answer(PROMPT, None, SHORT)
        until(lambda: engine.stats().waiting == 2)
        engine.cancel(first)
        assert [a.ids for a in all_of(waiting)] == [solo.answers(None, PROMPT, 6)] * 2
        assert engine.answer(PROMPT, None, SHORT).result(LONGEST_WAIT)


def test_an_adapter_that_cannot_be_had_fails_its_own_requests(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, trained: list[Adapter], tmp_path: Path
) -> None:
    spec = AdapterSpec(rank=4)
    stranger = make_adapter(make_llama(width=64), spec, 0)
    unknown = dataclasses.replace(stranger, base="")
    headed = dataclasses.replace(make_adapter(llama, dataclasses.replace(spec, head=("lm_head",)), 0), base="")
    registry, refs = publish(tmp_path, [trained[0], stranger, unknown, headed, trained[1]])
    damaged = Path(refs[4].path)
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"\xff" * 9)
    removed = registry.put("team/gone", trained[0])
    registry.remove(removed)
    bad: list[tuple[AdapterRef, type[PolyveraError], str]] = [
        (refs[1], FingerprintError, "an adapter of another base model"),
        (refs[2], LayoutError, "is .* wide here"),
        (refs[3], LayoutError, "has a head of its own"),
        (refs[4], FormatError, "a4"),
        (AdapterRef("team/nobody", 1, "", 0), NotFoundError, "team/nobody"),
        (removed, NotFoundError, "team/gone"),
    ]
    with Generator(llama, tokenizer, registry, SMALL) as engine:
        for _ in range(2):
            futures = [(engine.answer(PROMPT, ref, SHORT), engine.answer(PROMPT, refs[0], SHORT)) for ref, _, _ in bad]
            for (failing, good), (ref, error, message) in zip(futures, bad, strict=True):
                with pytest.raises(error, match=message):
                    failing.result(LONGEST_WAIT)
                assert good.result(LONGEST_WAIT).ids == solo.answers(trained[0], PROMPT, 6)
                with pytest.raises(error, match=message):
                    engine.preload(ref, timeout_s=LONGEST_WAIT)
        assert_nothing_is_left(engine)
        assert engine.stats().totals["failed_loads"] >= len(bad) and engine.failed is None


def test_without_a_store_only_the_base_answers(engine: Generator) -> None:
    with pytest.raises(StoreError, match="without a registry"):
        engine.answer(PROMPT, AdapterRef("team/a", 1, "", 0), SHORT).result(LONGEST_WAIT)


def test_an_engine_that_is_not_running_takes_nothing(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Generator(llama, tokenizer)
    for end in (lambda: engine.start().stop(), engine.stop):
        with pytest.raises(ClosedError):
            engine.answer(PROMPT, None, SHORT)
        with pytest.raises(ClosedError):
            engine.preload(AdapterRef("team/a", 1, "", 0))
        end()
    with pytest.raises(ClosedError, match="make a new one"):
        engine.start()


def test_a_stop_ends_what_runs_and_waits(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with Generator(llama, tokenizer, limits=Limits(max_rows=2)) as engine:
        asked = [submit(engine, PROMPT, None, LONG)[1] for _ in range(5)]
        future = engine.answer(PROMPT, None, LONG)
        until(lambda: asked[0].ids)
    assert [heard.wait().finish_reason for heard in asked] == [CANCELLED] * 5
    with pytest.raises(ClosedError, match="was cancelled"):
        future.result(LONGEST_WAIT)


def test_a_drain_lets_all_end_and_takes_no_more(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    for num in range(1, 6):
        with Generator(llama, tokenizer, limits=Limits(max_rows=2)) as engine:
            asked = [submit(engine, PROMPT, None, SHORT)[1] for _ in range(num)]
            assert engine.drain(LONGEST_WAIT)
            assert all(heard.ended.is_set() for heard in asked)  # what has ended is told by then
            assert [heard.ids for heard in asked] == [solo.answers(None, PROMPT, 6)] * num
            with pytest.raises(ClosedError):
                engine.answer(PROMPT, None, SHORT)


def test_a_drain_that_takes_too_long_says_so(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with Generator(llama, tokenizer) as engine:
        heard = submit(engine, PROMPT, None, LONG)[1]
        assert not engine.drain(0.01)
        assert not heard.ended.is_set()
    assert heard.wait().finish_reason == CANCELLED


def test_one_step_that_fails_ends_its_rows_and_the_engine_goes_on(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    with Generator(llama, tokenizer) as engine:
        norm = llama.model.norm
        hook = norm.register_forward_pre_hook(lambda *_: 1 / 0)
        heard = submit(engine, PROMPT, None, SHORT)[1]
        assert heard.wait().finish_reason == FAILED and isinstance(heard.outputs[-1].error, EngineError)
        hook.remove()
        assert engine.answer(PROMPT, None, SHORT).result(LONGEST_WAIT).ids == solo.answers(None, PROMPT, 6)
        assert engine.failed is None
        assert_nothing_is_left(engine)


def test_an_engine_whose_steps_all_fail_ends_and_says_why(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    hooks = []
    with Generator(llama, tokenizer, limits=Limits(max_rows=1)) as engine:
        hooks.append(llama.model.norm.register_forward_pre_hook(lambda *_: 1 / 0))
        asked = [submit(engine, PROMPT, None, SHORT)[1] for _ in range(6)]
        assert [heard.wait().finish_reason for heard in asked] == [FAILED] * 6
        until(lambda: engine.failed)
        assert isinstance(engine.failed, ZeroDivisionError) and engine.drain(LONGEST_WAIT)
        with pytest.raises(ClosedError):
            engine.answer(PROMPT, None, SHORT)
        hooks.pop().remove()
    with Generator(llama, tokenizer) as engine:
        assert engine.answer(PROMPT, None, SHORT).result(LONGEST_WAIT).ids == solo.answers(None, PROMPT, 6)
