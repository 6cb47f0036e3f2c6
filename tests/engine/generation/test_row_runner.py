"""Models whose rows cannot be packed are served row by row, each as it is alone, and given back as they were."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import LIKE_GPT2, LIKE_LLAMA, TOKENIZER, built, state
from tiny_serve import LONGEST_WAIT, Solo, all_of, make_adapter, make_prompt, publish

from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import ServeError

SHORT = SamplingParams(max_tokens=8)
LIKE_DEEPSEEK = {
    **LIKE_LLAMA,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
SERVED: dict[str, tuple[dict[str, Any], str]] = {
    "BloomConfig": (LIKE_GPT2, "default"),
    "DeepseekV3Config": (LIKE_DEEPSEEK, "all-linear"),
    "FalconConfig": ({**LIKE_GPT2, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}, "all-linear"),
    "GPTJConfig": ({**LIKE_GPT2, "rotary_dim": 4}, "default"),
    "JambaConfig": (
        {**LIKE_LLAMA, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "default",
    ),
    "MambaConfig": ({"hidden_size": 32, "num_hidden_layers": 2, "use_mambapy": False}, "default"),
    "OpenAIGPTConfig": ({**LIKE_GPT2, "n_positions": 160}, "default"),
}


@pytest.mark.parametrize("name", SERVED)
def test_models_that_cannot_be_packed_answer_as_alone(name: str, tmp_path: Path) -> None:
    given, targets = SERVED[name]
    model = built(name, given)
    solo = Solo(model)
    adapters = [make_adapter(model, AdapterSpec(method, rank=4, targets=targets), 1) for method in ("vera", "lora")]
    same = state(model)
    registry, refs = publish(tmp_path, adapters)
    limits = Limits(max_rows=3, chunk=16, max_context=120, prefix_bytes=1 << 20)
    with Generator(model, TOKENIZER, registry, limits) as engine:
        pairs = [(i, seed) for seed in (1, 2) for i in (0, None, 1)]
        answers = all_of(engine.answer(make_prompt(s), None if i is None else refs[i], SHORT) for i, s in pairs)
        with pytest.raises(ServeError, match="belongs to a running engine"):
            model(torch.tensor([[3, 4]]))
        with pytest.raises(ServeError, match="belongs to another engine"):
            Generator(model, TOKENIZER).start()
        scored = engine.answer([3, 4, 5], refs[0], SamplingParams(max_tokens=0, prompt_logprobs=1)).result(LONGEST_WAIT)
    for (i, seed), answer in zip(pairs, answers, strict=True):
        assert answer.ids == solo.answers(None if i is None else adapters[i], make_prompt(seed), 8, use_cache=False)
    expected = solo.logits(adapters[0], [3, 4, 5])[:, : len(TOKENIZER)].log_softmax(-1)
    assert [token.logprob for token in scored.prompt] == pytest.approx(
        [float(expected[0, 4]), float(expected[1, 5])], abs=1e-4
    )
    same()
