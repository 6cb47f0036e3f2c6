"""vLLM's engine with the plugin, on SmolLM2, against transformers with polyvera's own layers."""

from __future__ import annotations

import pytest
import torch
from strong_adapters import NUM_TOKENS, PROMPTS, answers, draw

from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import PolyveraError
from polyvera.store.peft import export_peft
from polyvera.store.registry import Registry

pytest.importorskip("vllm.lora.request", reason="vLLM has an environment of its own: scripts/test-vllm")

# One pair for all: a spec for fewer layers names the widths of the widest.
WIDE = {"in_max": 1536, "out_max": 1536}
VERA = AdapterSpec("vera", rank=64, targets="all-linear", exclude=("lm_head",))
SOME = AdapterSpec("vera", rank=64, targets=("q_proj", "v_proj"), **WIDE)
DVORA = AdapterSpec("dvora", rank=64, targets="all-linear", exclude=("lm_head",))
LORA = AdapterSpec("lora", rank=8, targets=("q_proj", "v_proj", "down_proj"))
OTHER_SEED = AdapterSpec("vera", rank=64, targets=("q_proj", "v_proj"), seed=1, **WIDE)


@pytest.fixture(scope="module")
def base():
    from transformers import AutoModelForCausalLM

    from polyvera.model.load import locate

    model = AutoModelForCausalLM.from_pretrained(locate("smollm2"), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # answers of one length
    return model


@pytest.fixture(scope="module")
def prompts():
    from transformers import AutoTokenizer

    from polyvera.model.load import locate

    tokenizer = AutoTokenizer.from_pretrained(locate("smollm2"))
    return [tokenizer(text).input_ids for text in PROMPTS]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def engine(store):
    """16 slots, all methods, in this process."""
    environment = {
        "POLYVERA_STORE": store.url,
        "POLYVERA_RANK": "64",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield _engine()


def _engine():
    from vllm import LLM

    from polyvera.model.load import locate

    lora = {"enable_lora": True, "max_loras": 16, "max_lora_rank": 8, "max_cpu_loras": 64}
    sizes = {"max_model_len": 128, "max_num_seqs": 32, "max_num_batched_tokens": 1024}
    return LLM(model=locate("smollm2"), dtype="float32", enforce_eager=True, **lora, **sizes)


@pytest.fixture(scope="module")
def ask(engine, prompts):
    """Says what the engine answers to the first prompts in one batch, each with the adapter at a path, or None."""
    numbers: dict[str, int] = {}

    def answers(paths):
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        ids = [p and numbers.setdefault(p, len(numbers) + 1) for p in paths]
        requests = [p and LoRARequest(p, i, p) for p, i in zip(paths, ids, strict=True)]
        greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        asked = [{"prompt_token_ids": prompts[i % len(prompts)]} for i in range(len(paths))]
        done = engine.generate(asked, greedy, lora_request=requests, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in done]

    return answers


def publish(store, name, adapter) -> str:
    return f"polyvera://{store.put(name, adapter)}"


def alone(base, adapters, prompts):
    """What transformers says to prompt i with adapter i."""
    return [answers(base, a, [p])[0] for a, p in zip(adapters, prompts, strict=False)]


def assert_equal(found, want, bare):
    assert found == want
    assert sum(w != b for w, b in zip(want, bare)) >= 0.75 * len(want), "the adapters are too weak to prove anything"


@pytest.fixture(scope="module")
def bare(base, prompts):
    return answers(base, None, prompts)


def test_sixteen_prompts_with_sixteen_adapters(base, prompts, store, ask, bare):
    adapters = [draw(base, VERA, seed) for seed in range(16)]
    found = ask([publish(store, f"many/a{i}", a) for i, a in enumerate(adapters)])
    assert_equal(found, alone(base, adapters, prompts), bare)


def test_the_embedded_engine_says_the_same(base, prompts, store, ask):
    """One store, the same names: 16 adapters of several methods, and rows without one."""
    from transformers import AutoTokenizer

    from polyvera.engine.generation.generator import Generator
    from polyvera.engine.generation.request import SamplingParams
    from polyvera.model.load import locate

    specs = [VERA, SOME, DVORA, LORA]
    refs = [store.put(f"both/a{i}", draw(base, specs[i % 4], 500 + i)) for i in range(16)]
    chosen = [*refs[:12], None, None, *refs[14:]]
    greedy = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    with Generator(base, AutoTokenizer.from_pretrained(locate("smollm2")), store) as engine:
        futures = [engine.answer(prompt, ref, greedy) for prompt, ref in zip(prompts, chosen, strict=True)]
        embedded = [future.result(600).ids for future in futures]
    assert embedded == ask([ref and f"polyvera://{ref}" for ref in chosen])


@pytest.mark.parametrize("spec", [LORA, VERA], ids=lambda spec: spec.method)
def test_base_rows_among_full_slots_are_the_base(spec, base, store, ask, bare):
    """Every slot holds an adapter; half the rows have none, and vLLM's index for those is -1, the last slot's too."""
    paths = [publish(store, f"full-{spec.method}/a{i}", draw(base, spec, 100 + i)) for i in range(16)]
    ask(paths)
    assert ask([path for path in paths[:8] for path in (None, path)])[::2] == bare[::2]


def test_methods_side_by_side(base, prompts, store, ask, bare):
    """Vectors, vectors for fewer layers, vectors with a magnitude, and matrices in one batch."""
    specs = [VERA, SOME, DVORA, LORA] * 3
    adapters = [draw(base, spec, 200 + i) for i, spec in enumerate(specs)]
    found = ask([publish(store, f"mixed/a{i}", a) for i, a in enumerate(adapters)])
    assert_equal(found, alone(base, adapters, prompts), bare)


def test_folders_of_peft(base, prompts, tmp_path, ask, bare):
    adapters = [draw(base, spec, 300 + i) for i, spec in enumerate((VERA, LORA, SOME))]
    for i, adapter in enumerate(adapters):
        export_peft(adapter, tmp_path / str(i))
    found = ask([str(tmp_path / str(i)) for i in range(3)])
    assert found == alone(base, adapters, prompts)


def test_a_slot_is_clean_for_the_next(base, prompts, store, ask):
    """Twice as many adapters as slots, of kinds that take turns: what one leaves behind would show in the next."""
    specs = [DVORA, SOME, LORA, VERA, SOME]
    adapters = [draw(base, specs[i % 5], 400 + i) for i in range(32)]
    paths = [publish(store, f"turns/a{i}", a) for i, a in enumerate(adapters)]
    ask(paths[:16])
    assert ask(paths[16:]) == alone(base, adapters[16:], prompts)


def test_what_cannot_be_served_is_refused(base, store, engine):
    from vllm.lora.request import LoRARequest

    wide_rank = AdapterSpec("vera", rank=65, targets=("q_proj", "v_proj"))
    dora = AdapterSpec("dora", rank=8, targets=("q_proj",))
    head = AdapterSpec("lora", rank=8, targets=("lm_head",))
    high = AdapterSpec("lora", rank=16, targets=("q_proj",))
    cases = {OTHER_SEED: "share", wide_rank: "share", dora: "magnitude", head: "lm_head", high: "max-lora-rank"}
    for i, (spec, why) in enumerate(cases.items()):
        path = publish(store, f"wrong/a{i}", draw(base, spec, i))
        with pytest.raises(PolyveraError, match=why):
            engine.llm_engine.add_lora(LoRARequest(path, 1000 + i, path))
    for path in ("polyvera://nobody@1", "polyvera://../../etc@1"):
        with pytest.raises(PolyveraError):
            engine.llm_engine.add_lora(LoRARequest(path, 2000, path))


def test_a_slot_takes_what_the_plan_says(base, engine):
    from polyvera.adapter.layout import layout_of
    from polyvera.adapter.targets import find_sites
    from polyvera.vllm.layers import WithVectors

    manager = engine.llm_engine.model_executor.driver_worker.worker.model_runner.lora_manager._adapter_manager
    slot_bytes = sum(x.slots.slot_bytes for x in manager.modules.values() if isinstance(x, WithVectors))
    planned = 4 * layout_of(DVORA, find_sites(base, DVORA)).num_params  # all methods are served, so gains have room
    assert slot_bytes == planned
