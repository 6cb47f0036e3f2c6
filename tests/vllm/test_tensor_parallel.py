"""Two ranks on one CPU: each holds its rows and columns of A, B, b and the gain, and together they are transformers."""

from __future__ import annotations

import pytest
import torch
from strong_adapters import NUM_TOKENS, answers, draw
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.spec import AdapterSpec
from polyvera.store.registry import Registry

pytest.importorskip("vllm.lora.request", reason="vLLM has an environment of its own: scripts/test-vllm")

PROMPTS = [[5, 7, 11], [3, 2, 50, 9], [60, 1], [8, 8, 8, 8, 30]]
SPECS = [AdapterSpec(method, rank=16, targets="all-linear", exclude=("lm_head",)) for method in ("vera", "dvora")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama that two ranks can part, k and v too, saved and loaded."""
    torch.manual_seed(0)
    widths = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 256, "max_position_embeddings": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**widths, **heads, initializer_range=0.2, bos_token_id=0, eos_token_id=1)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def engine(base, store):
    environment = {
        "POLYVERA_STORE": store.url,
        "POLYVERA_RANK": "16",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        from vllm import LLM, envs

        envs.disable_envs_cache()  # an engine in this process before froze them
        sizes = {"max_model_len": 64, "max_num_seqs": 8, "max_loras": 4, "max_lora_rank": 8}
        ranks = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
        plain = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "enable_lora": True}
        yield LLM(base.name_or_path, **sizes, **ranks, **plain)


def test_two_ranks_say_what_one_does(base, store, engine):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapters = [draw(base, spec, i) for i, spec in enumerate(SPECS * 2)]
    paths = [f"polyvera://{store.put(f'a{i}', a)}" for i, a in enumerate(adapters)]
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, detokenize=False)
    requests = [*(LoRARequest(p, i + 1, p) for i, p in enumerate(paths)), *[None] * len(PROMPTS)]
    asked = [{"prompt_token_ids": p} for p in PROMPTS * 2]
    found = [
        list(o.outputs[0].token_ids) for o in engine.generate(asked, greedy, lora_request=requests, use_tqdm=False)
    ]
    want = [answers(base, a, [p])[0] for a, p in zip(adapters, PROMPTS)]
    bare = answers(base, None, PROMPTS)
    assert found == want + bare
    assert all(w != b for w, b in zip(want, bare))
