"""PEFT as the oracle: its own configs and models, and adapters of ours to give it."""

from __future__ import annotations

import copy

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model

from polyvera.adapter.inject import extract, inject, load

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "value", "output.dense"],
}
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = {
    "vera": lambda t: VeraConfig(r=8, projection_prng_key=3, target_modules=t),
    "vera-drawn": lambda t: VeraConfig(r=8, projection_prng_key=3, save_projection=False, target_modules=t),
    "lora": lambda t: LoraConfig(r=4, lora_alpha=7, target_modules=t),
    "rslora": lambda t: LoraConfig(r=5, lora_alpha=7, use_rslora=True, target_modules=t),
    "dora": lambda t: LoraConfig(r=4, lora_alpha=7, use_dora=True, target_modules=t),
    "patterns": lambda t: LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=t,
        rank_pattern={t[0]: 6, rf"\w+\.\w+\.1\..*{t[1]}": 3},
        alpha_pattern={t[1]: 5},
    ),
    "adalora": lambda t: AdaLoraConfig(init_r=6, lora_alpha=7, total_step=10, target_modules=t),
    "pruned": lambda t: AdaLoraConfig(init_r=6, lora_alpha=7, total_step=10, target_modules=t),
}


def saved_by_peft(folder, base, config, task=None, prune=False, seed=1):
    """The folder in which PEFT itself saves an adapter whose every number was moved."""
    config.task_type = task
    model = get_peft_model(copy.deepcopy(base), config)
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_((0.2 * torch.randn(parameter.shape, generator=noise)).to(parameter.dtype))
    if prune:  # the second layer keeps no rank at all
        names = [n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_E")]
        model.peft_config["default"].rank_pattern = {
            f"{n}.lora_E.default": [rank % 3 != 0 and layer != 1 for rank in range(config.init_r)]
            for layer, n in enumerate(names)
        }
    model.save_pretrained(folder)
    return folder


def trained(base, spec, seed=1):
    """An adapter of our own whose every number was moved."""
    bank = inject(copy.deepcopy(base), spec)
    adapter = extract(bank, bank.first)
    adapter.flat.add_(0.1 * torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(seed)))
    return adapter


def in_peft(base, folder):
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


def here(base, *adapters):
    model = copy.deepcopy(base)
    return model, load(model, list(adapters))


def logits(model, ids, grad=False):
    with torch.set_grad_enabled(grad):
        return model(input_ids=ids).logits.detach()


def assert_same_everywhere(one, other, bare, ids):
    """Bit for bit with and without a graph, and not the bare base."""
    for grad in (False, True):
        assert torch.equal(logits(one, ids, grad), logits(other, ids, grad))
    assert not torch.equal(logits(one, ids), logits(bare, ids))
