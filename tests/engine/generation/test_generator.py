"""Every answer is the one that the adapter gives alone, whatever else is in the batch."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_serve import (
    LONGEST_WAIT,
    SMALL,
    Solo,
    all_of,
    assert_nothing_is_left,
    make_adapter,
    make_llama,
    make_prompt,
    make_tokenizer,
    publish,
    submit,
    until,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import LENGTH, STOP, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import NonFiniteError

every = pytest.mark.parametrize("name", METHODS)


def params(num: int) -> SamplingParams:
    return SamplingParams(max_tokens=num)


def test_any_mix_answers_as_each_alone(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, trained: list[Adapter], tmp_path: Path
) -> None:
    registry, refs = publish(tmp_path, trained)
    draw = random.Random(0)
    asked = [(which, seed, draw.randint(1, 12)) for seed in range(3) for which in range(-1, len(refs))] * 2
    draw.shuffle(asked)
    with Generator(llama, tokenizer, registry, SMALL) as engine:
        futures = [
            engine.answer(make_prompt(seed), refs[which] if which >= 0 else None, params(num))
            for which, seed, num in asked
        ]
        answers = all_of(futures)
        for (which, seed, num), answer in zip(asked, answers, strict=True):
            expected = solo.answers(trained[which] if which >= 0 else None, make_prompt(seed), 12)[:num]
            assert answer.ids == expected, (which, seed)
            assert answer.finish_reason == (STOP if expected[-1] in engine.ends else LENGTH)
        totals = engine.stats().totals
        assert totals["evictions"] > len(refs) and totals["reused_tokens"] > 0
        assert_nothing_is_left(engine)


@every
def test_adapters_of_one_row_of_the_table_side_by_side(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, name: str
) -> None:
    spec = AdapterSpec(name, rank=5, targets="all-linear")
    adapters = [make_adapter(llama, spec, seed) for seed in range(3)]
    registry, refs = publish(tmp_path, adapters)
    with Generator(llama, tokenizer, registry, Limits(max_rows=8, chunk=32, prefix_bytes=0)) as engine:
        pairs = [(i, seed) for seed in range(2) for i in (None, 0, 1, 2)]
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], params(10)) for i, s in pairs)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 10)


@every
def test_a_slot_that_passes_to_another_adapter_answers_as_that_one(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, name: str
) -> None:
    spec = AdapterSpec(name, rank=4, targets="all-linear")
    adapters = [make_adapter(llama, spec, seed) for seed in range(6)]
    registry, refs = publish(tmp_path, adapters)
    prompts = [make_prompt(seed, 4, 6) for seed in range(6)]
    with Generator(llama, tokenizer, registry, Limits(max_rows=2, num_slots=2, prefix_bytes=0)) as engine:
        for ref in refs:  # all are in host memory, so that each is seated in the step after the last one's end
            engine.preload(ref)
        _, long = submit(engine, prompts[0], refs[0], SamplingParams(max_tokens=100, ignore_eos=True))
        answers = all_of([engine.answer(prompts[i], refs[i], params(4)) for i in range(1, 6)])
        long.wait()
    for i, answer in enumerate(answers, 1):
        assert answer.ids == solo.answers(adapters[i], prompts[i], 4)


def test_prompts_are_read_in_pieces_and_others_go_on(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    prompts = [make_prompt(seed, 100, 120) for seed in range(6)]
    with Generator(llama, tokenizer, limits=Limits(max_rows=8, chunk=7, prefix_bytes=0)) as engine:
        _, first = submit(engine, make_prompt(9, 3, 3), None, SamplingParams(max_tokens=100, ignore_eos=True))
        until(lambda: first.ids)
        futures = [engine.answer(prompt, None, params(8)) for prompt in prompts]
        answers = all_of(futures)
        assert [a.ids for a in answers] == [solo.answers(None, p, 8) for p in prompts]
        first.wait()
        assert len(first.ids) == 100
        steps, read = engine.stats().totals["steps"], sum(map(len, prompts))
        assert steps >= read // 7


def test_a_prefix_is_used_again_only_by_its_tenant_and_version(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path
) -> None:
    spec = AdapterSpec(rank=4, targets="all-linear")
    old, new = (make_adapter(llama, spec, seed) for seed in range(2))
    registry, (first,) = publish(tmp_path, [old])
    second = registry.put(first.name, new)
    prompt = make_prompt(3, 60, 60)
    longer = [*prompt, *make_prompt(4, 20, 20)]
    with Generator(llama, tokenizer, registry, SMALL) as engine:

        def reused(prompt: list[int], ref: object, tenant: str, adapter: Adapter | None) -> int:
            request, heard = submit(engine, prompt, ref, params(6), tenant=tenant)
            heard.wait()
            assert heard.ids == solo.answers(adapter, prompt, 6)
            return request.num_reused

        assert reused(prompt, first, "a", old) == 0
        assert reused(prompt, first, "a", old) == 59
        assert reused(longer, first, "a", old) >= 60
        assert reused(prompt, first, "b", old) == 0
        assert reused(prompt, second, "a", new) == 0
        assert reused(prompt, None, "a", None) == 0
        assert reused(longer, second, "a", new) >= 60
        assert reused(longer, None, "b", None) == 0


def test_a_conversation_goes_on_from_its_last_answer(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    with Generator(llama, tokenizer, limits=SMALL) as engine:
        tokens = make_prompt(1, 30, 30)
        for turn in range(4):
            request, heard = submit(engine, tokens, None, params(8))
            heard.wait()
            assert heard.ids == solo.answers(None, tokens, 8)
            assert request.num_reused >= (0 if turn == 0 else len(tokens) - 6)
            tokens = [*tokens, *heard.ids, *make_prompt(turn, 5, 5)]


def test_without_prefixes_nothing_is_kept(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with Generator(llama, tokenizer, limits=Limits(prefix_bytes=0)) as engine:
        all_of(engine.answer(make_prompt(1, 50, 50), None, params(2)) for _ in range(3))
        assert engine.stats().totals["reused_tokens"] == 0
        assert_nothing_is_left(engine)


def test_a_model_that_ends_its_answers_stops(solo: Solo, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    ends = {solo.answers(None, make_prompt(seed), 12)[-3:][0] for seed in range(8)}
    model.generation_config.eos_token_id = sorted({1, *ends})
    alone = Solo(model)
    with Generator(model, tokenizer, limits=SMALL) as engine:
        answers = all_of(engine.answer(make_prompt(seed), None, params(12)) for seed in range(8))
    assert [a.ids for a in answers] == [alone.answers(None, make_prompt(seed), 12) for seed in range(8)]
    assert {a.finish_reason for a in answers} == {STOP}
    for answer in answers:  # the end itself is no text
        assert answer.text == make_tokenizer().decode(answer.ids[:-1], skip_special_tokens=True)


def test_numbers_without_end_in_one_adapter_reach_no_other_row(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, trained: list[Adapter], tmp_path: Path
) -> None:
    hostile = [replace(adapter, flat=torch.full_like(adapter.flat, 3e38)) for adapter in trained]
    for beginning in range(0, len(trained), 6):  # a bank's first slot is the one that other rows are near to
        some = slice(beginning, beginning + 6)
        registry, bad = publish(tmp_path / str(beginning), hostile[some], "bad/a")
        good = [registry.put(f"good/a{i}", adapter) for i, adapter in enumerate(trained[some])]
        with Generator(llama, tokenizer, registry, Limits(max_rows=13, num_slots=100)) as engine:
            for ref in bad:
                engine.preload(ref)
            refs = [ref for pair in zip(bad, good, strict=True) for ref in pair]
            failing = [engine.answer(make_prompt(1, 9, 9), ref, params(8)) for ref in refs]
            assert all_of([engine.answer(make_prompt(2, 9, 9), None, params(8))])[0].ids == solo.answers(
                None, make_prompt(2, 9, 9), 8
            )
            for adapter, future in zip(trained[some], failing[1::2], strict=True):
                assert future.result(LONGEST_WAIT).ids == solo.answers(adapter, make_prompt(1, 9, 9), 8)
            for future in failing[::2]:
                with pytest.raises(NonFiniteError, match="NaN or inf"):
                    future.result(LONGEST_WAIT)
            assert_nothing_is_left(engine)


@every
def test_the_output_layer_may_be_adapted(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path, name: str
) -> None:
    specs = [AdapterSpec(name, rank=4, targets=("lm_head", "q_proj")), AdapterSpec(name, rank=4)]
    adapters = [make_adapter(llama, spec, 3) for spec in specs]
    registry, refs = publish(tmp_path, adapters)
    with Generator(llama, tokenizer, registry, Limits(chunk=8)) as engine:
        pairs = [(i, seed) for seed in range(2) for i in (0, None, 1)]
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], params(6)) for i, s in pairs)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 6)


def test_rows_that_take_turns_answer_as_each_alone(
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    solo: Solo,
    trained: list[Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a server where every step takes too long: of each of two tenants it computes a row, or 16 tokens."""
    monkeypatch.setattr("polyvera.engine.step_budget.TARGET_S", 0.0)
    monkeypatch.setattr("polyvera.engine.step_budget.SLOWER", 0.0)
    registry, refs = publish(tmp_path, trained[:3])
    with Generator(llama, tokenizer, registry, Limits(max_rows=8, chunk=32)) as engine:
        asked = [(i, seed, tenant) for seed in range(4) for i in range(3) for tenant in ("one", "other")]
        told = [submit(engine, make_prompt(s, 30, 60), refs[i], params(9), tenant)[1] for i, s, tenant in asked]
        for (i, seed, _), heard in zip(asked, told, strict=True):
            heard.wait()
            assert heard.ids == solo.answers(trained[i], make_prompt(seed, 30, 60), 9)
        assert engine._core._budget.most == 1 and engine._core._scheduler.is_shared
        assert_nothing_is_left(engine)
