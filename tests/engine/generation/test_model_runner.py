"""Which models an engine holds, that it holds them rightly, and that it gives them back as they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_families import LIKE_LLAMA, SERVED, TOKENIZER, built, state
from tiny_serve import LONGEST_WAIT, Solo, all_of, make_adapter, make_llama, make_prompt, publish
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.inject import eject, inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.model_runner import runner_for
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import ServeError

SHORT = SamplingParams(max_tokens=8)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32,
    "factor": 8.0,
}
LONG = {**LIKE_LLAMA, "rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Phi3Config": (LONG, "serve it with max_context=32 or less"),
    "XLNetConfig": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "computes attention by code of its own"),
}


@pytest.mark.parametrize("name", SERVED)
def test_models_of_many_families_answer_as_alone(name: str, tmp_path: Path) -> None:
    model = built(name, SERVED[name])
    solo = Solo(model)
    shared = next(row.name for row in METHODS.values() if row.shares_basis)
    owned = next(row.name for row in METHODS.values() if not row.shares_basis)
    adapters = [make_adapter(model, AdapterSpec(method, rank=4), 1) for method in (shared, owned)]
    same = state(model)
    registry, refs = publish(tmp_path, adapters)
    with Generator(model, TOKENIZER, registry, Limits(max_rows=4, chunk=16, max_context=120)) as engine:
        pairs = [(i, seed) for seed in range(3) for i in (0, None, 1)]
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], SHORT) for i, s in pairs)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 8)
    same()


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_packed_are_refused_and_left_alone(name: str) -> None:
    given, message = REFUSED[name]
    model = built(name, given)
    same = state(model)
    engine = Generator(model, TOKENIZER)
    with pytest.raises(ServeError, match=message):
        engine.start()
    engine.stop()
    same()


def test_frequencies_that_change_with_the_length_are_served_below_that_length() -> None:
    model = built("Phi3Config", LONG)
    solo, prompts = Solo(model), [make_prompt(1, 2, 3), make_prompt(2, 20, 24)]
    with Generator(model, TOKENIZER, None, Limits(max_context=32)) as engine:
        answers = all_of(engine.answer(prompt, None, SHORT) for prompt in prompts)
        assert [answer.ids for answer in answers] == [solo.answers(None, prompt, 8) for prompt in prompts]


def test_a_model_that_writes_no_text_is_refused() -> None:
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    t5 = transformers.T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=8, vocab_size=64)
    for model in (bert, transformers.T5ForConditionalGeneration(t5)):
        with pytest.raises(
            ServeError, match="does not generate text token by token|is an encoder-decoder, which no engine serves"
        ):
            runner_for(model)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("OPTConfig", SERVED["OPTConfig"]),
        ("Qwen2MoeConfig", {**LIKE_LLAMA, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
    ],
)
def test_layers_that_see_all_tokens_of_all_rows_in_one_axis(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    model = built(name, given)
    solo = Solo(model)
    both = [make_adapter(model, AdapterSpec(rank=4, targets=targets), 1) for targets in ("default", "all-linear")]
    registry, refs = publish(tmp_path, both)
    with Generator(model, TOKENIZER, registry, Limits(max_context=120)) as engine:
        answers = [engine.answer(make_prompt(i), refs[i % 2], SHORT) for i in range(6)]
        assert [a.ids for a in all_of(answers)] == [solo.answers(both[i % 2], make_prompt(i), 8) for i in range(6)]
        assert engine.failed is None


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_given_back_bit_for_bit(
    tokenizer: PreTrainedTokenizerFast, trained: list[Any], tmp_path: Path, training: bool
) -> None:
    model = make_llama().train(training)
    same = state(model)
    registry, refs = publish(tmp_path, trained)
    for _ in range(2):
        with Generator(model, tokenizer, registry, Limits(num_slots=5)) as engine:
            all_of(engine.answer(make_prompt(1), ref, SHORT) for ref in (*refs, None))
            assert not model.training
        same()


def test_a_model_that_is_held_cannot_be_called_or_held_again(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo
) -> None:
    with Generator(llama, tokenizer) as engine:
        with pytest.raises(ServeError, match="belongs to a running engine"):
            llama(torch.arange(3, 9)[None])
        with pytest.raises(ServeError, match="belongs to another engine"):
            Generator(llama, tokenizer).start()
        assert engine.answer(make_prompt(1), None, SHORT).result(LONGEST_WAIT).ids == solo.answers(
            None, make_prompt(1), 8
        )


def test_a_model_with_adapters_in_it_is_refused(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model = copy.deepcopy(llama)
    inject(model, AdapterSpec(rank=4))
    with pytest.raises(ServeError, match=r"eject\(model\) first"):
        Generator(model, tokenizer).start()
    with Generator(eject(model), tokenizer):
        pass


def test_a_context_beyond_the_model_is_refused(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ServeError, match="max_context=161: LlamaForCausalLM reads at most 160 tokens"):
        Generator(llama, tokenizer, limits=Limits(max_context=161))
    assert Generator(llama, tokenizer, limits=Limits(max_context=90)).max_context == 90
    assert Generator(llama, tokenizer).max_context == 160
