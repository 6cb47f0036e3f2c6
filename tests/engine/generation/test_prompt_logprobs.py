"""The log-probabilities of a prompt are the model's own, in whatever pieces the prompt is read."""

import pytest
import torch
from tiny_serve import SMALL, Solo, all_of, assert_nothing_is_left, make_prompt, publish
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import LENGTH, SamplingParams
from polyvera.errors import SamplingError


def expected(solo: Solo, adapter: Adapter | None, prompt: list[int], num_top: int) -> list[tuple[float, list[int]]]:
    logprobs = solo.logits(adapter, prompt).float().log_softmax(-1)[:-1]
    own = logprobs.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    return list(zip(own, logprobs.topk(num_top).indices.tolist(), strict=True))


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_each_token_is_scored_under_its_adapter(
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    solo: Solo,
    trained: list[Adapter],
    tmp_path,
    max_tokens: int,
) -> None:
    registry, refs = publish(tmp_path, trained[:2])
    prompts = [make_prompt(seed, 40, 60) for seed in range(3)] + [[7]]
    whom = [(None, None), *zip(refs, trained, strict=False)]
    with Generator(llama, tokenizer, registry, SMALL) as engine:
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=2)
        asked = [(prompt, ref, adapter) for prompt in prompts for ref, adapter in whom]
        for _ in range(2):  # the second time, prefixes are cached
            answers = all_of([engine.answer(prompt, ref, params) for prompt, ref, _ in asked])
            for (prompt, _, adapter), answer in zip(asked, answers, strict=True):
                assert [token.id for token in answer.prompt] == prompt[1:]
                for token, (own, top) in zip(answer.prompt, expected(solo, adapter, prompt, 2), strict=True):
                    assert token.logprob == pytest.approx(own, abs=1e-3) and [i for i, _ in token.top] == top
                assert answer.ids == (solo.answers(adapter, prompt, max_tokens) if max_tokens else [])
                assert max_tokens or answer.finish_reason == LENGTH
        assert_nothing_is_left(engine)


def test_an_answer_of_no_tokens_has_nothing_else_to_tell() -> None:
    with pytest.raises(SamplingError, match="max_tokens=0"):
        SamplingParams(max_tokens=0)
