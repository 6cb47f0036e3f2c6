"""One step through the model: prompts and rows that decode in one batch, each scored as its adapter scores it alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_serve import SMALL, Solo, make_adapter, make_prompt, publish, submit
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.forward import NO_ROUTE, Forward
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, SamplingParams
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.generation.sampler import Scores

NUM = 4


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, int, Tensor]]:
    """(request, tokens of its answer so far, logits) of every row of every step."""
    seen: list[tuple[Request, int, Tensor]] = []
    computed = Forward.__call__

    def noted(self: Forward, decoding: Sequence[Chunk], reading: Sequence[Chunk]) -> tuple[list[Row], Scores]:
        rows, scores = computed(self, decoding, reading)
        seen.extend((row.request, len(row.request.answer), scores.logits[i].clone()) for i, row in enumerate(rows))
        return rows, scores

    monkeypatch.setattr(Forward, "__call__", noted)
    return seen


def test_every_score_of_every_step_is_that_of_its_adapter_alone(
    llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    solo: Solo,
    tmp_path: Path,
    scored: list[tuple[Request, int, Tensor]],
) -> None:
    adapters = [make_adapter(llama, AdapterSpec(rank=4), seed) for seed in range(2)]
    registry, refs = publish(tmp_path, adapters)
    pairs = list(zip([None, *refs], [None, *adapters], strict=True))
    with Generator(llama, tokenizer, registry, SMALL) as engine:
        params = SamplingParams(max_tokens=NUM, ignore_eos=True)
        asked = [submit(engine, make_prompt(i, 5, 40), ref, params) for i, (ref, _) in enumerate(pairs)]
        for _, heard in asked:
            heard.wait()
    assert len(scored) == NUM * len(asked)
    for (request, heard), (_, adapter) in zip(asked, pairs, strict=True):
        alone = solo.logits(adapter, [*request.prompt, *heard.ids])[len(request.prompt) - 1 :]
        own = [(number, logits) for of, number, logits in scored if of is request]
        assert [number for number, _ in own] == list(range(NUM))
        for number, logits in own:
            torch.testing.assert_close(logits, alone[number, : len(logits)], atol=1e-4, rtol=1e-4)


def test_a_route_lasts_while_its_rows_do(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    registry, refs = publish(tmp_path, [make_adapter(llama, AdapterSpec(rank=4), 0)])
    with Generator(llama, tokenizer, registry, SMALL) as engine:
        _, heard = submit(engine, [5, 6, 7], refs[0], SamplingParams(max_tokens=3))
        heard.wait()
        assert engine._core.workload._forward._route is NO_ROUTE, "its slot may be another adapter's next"
