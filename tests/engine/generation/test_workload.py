"""What becomes of each token: answers end where they are told to, prefixes are kept, and every request ends once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_serve import SMALL, Solo, assert_nothing_is_left, make_adapter, make_prompt, publish, submit
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation import workload
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import CANCELLED, LENGTH, STOP, SamplingParams
from polyvera.store.registry import Registry

PROMPT = make_prompt(3, 30, 40)


@pytest.fixture
def engine(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    with Generator(llama, tokenizer, Registry(tmp_path), SMALL) as found:
        yield found
        assert_nothing_is_left(found)


def test_an_answer_ends_by_length_by_a_stop_token_or_by_the_context(engine: Generator, solo: Solo) -> None:
    whole = solo.answers(None, PROMPT, 12, eos_token_id=None)
    stop = whole[5]
    first = whole.index(stop)
    for params, wanted, reason in (
        (SamplingParams(max_tokens=4, ignore_eos=True), whole[:4], LENGTH),
        (SamplingParams(max_tokens=12, ignore_eos=True, stop_ids=(stop,)), whole[: first + 1], STOP),
    ):
        _, heard = submit(engine, PROMPT, params=params)
        assert heard.wait().finish_reason == reason and heard.ids == wanted
    room = engine.limits.max_context - len(PROMPT)
    _, heard = submit(engine, PROMPT, params=SamplingParams(max_tokens=None, ignore_eos=True))
    assert heard.wait().finish_reason == LENGTH and len(heard.ids) == room


def test_a_prefix_is_reused_by_its_tenant_and_adapter_alone(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    registry, refs = publish(tmp_path, [make_adapter(llama, AdapterSpec(rank=4), 0)])
    with Generator(llama, tokenizer, registry, SMALL) as engine:

        def reused(adapter=None, tenant: str = "") -> int:
            request, heard = submit(engine, PROMPT, adapter, SamplingParams(max_tokens=2), tenant)
            heard.wait()
            return request.num_reused

        assert reused() == 0 < reused()
        assert reused(refs[0]) == 0 < reused(refs[0])
        assert reused(tenant="other") == 0 < reused(tenant="other")
        totals = engine.stats().totals
        assert totals["prompt_tokens"] == 6 * len(PROMPT) and totals["reused_tokens"] == 3 * (len(PROMPT) - 1)
        assert_nothing_is_left(engine)


def test_a_prefix_is_copied_by_pieces_while_others_are_computed(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(workload, "COPY_S", 0.0)
    monkeypatch.setattr(workload, "COPY_TOKENS", 8)
    params = SamplingParams(max_tokens=6)
    with Generator(llama, tokenizer, Registry(tmp_path), SMALL) as engine:
        submit(engine, PROMPT, params=params)[1].wait()
        others = [submit(engine, make_prompt(seed, 5, 9), params=params, tenant="other") for seed in range(3)]
        again = [submit(engine, PROMPT, params=params) for _ in range(3)]
        for request, heard in [*others, *again]:
            heard.wait()
            assert heard.ids == solo.answers(None, request.prompt, 6)
        assert [request.num_reused for request, _ in again] == [len(PROMPT) - 1] * 3
        assert_nothing_is_left(engine)


def test_a_cancelled_request_ends_once_with_what_it_had(engine: Generator, solo: Solo) -> None:
    request, heard = submit(engine, PROMPT, params=SamplingParams(max_tokens=100, ignore_eos=True))
    engine.cancel(request)
    engine.cancel(request)
    assert heard.wait().finish_reason == CANCELLED
    assert heard.ids == solo.answers(None, PROMPT, 100, eos_token_id=None)[: len(heard.ids)]
    assert sum(output.finish_reason is not None for output in heard.outputs) == 1
