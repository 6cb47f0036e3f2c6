"""A quantized base merged into plain weights, saved, and loaded as a plain model with the adapted logits."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from polyvera.adapter.base_layer import is_linear, is_quantized
from polyvera.adapter.dequantize import dequantized, plain_dtype
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec

IDS = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(5))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _bits(**choices):
    def make():
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        return BitsAndBytesConfig(**choices)

    return make


def _torchao(name, *choices):
    def make():
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, name)(*choices))

    return make


CONFIGS = {
    "nf4": _bits(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": _bits(load_in_8bit=True),
    "torchao int8": _torchao("Int8WeightOnlyConfig"),
    "torchao int4": _torchao("IntxWeightOnlyConfig", torch.int4),
}


@pytest.fixture(params=CONFIGS)
def quantized(request, tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "plain")
    config = CONFIGS[request.param]()
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config, dtype=torch.float32)
    if not request.param.startswith("nf4"):
        return made
    made.save_pretrained(tmp_path / "quantized")  # as people have it: quantized on disk
    return AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("targets", ["default", "all-linear"])
def test_a_merged_quantized_base_is_saved_and_loaded_as_a_plain_one(quantized, targets, tmp_path):
    bank = inject(quantized, AdapterSpec("vera", rank=4, targets=targets))
    logits(quantized)  # bitsandbytes moves its scales at the first forward
    adapter = extract(bank, bank.first)
    eject(quantized)
    noise = torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(1))
    adapter = replace(adapter, flat=0.3 * noise)
    [slot] = load(quantized, adapter)
    with route(slot):
        expected = logits(quantized)
    merge(quantized, slot, dequantize=True).save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any(is_quantized(m) for m in plain.modules() if is_linear(m))
    found = logits(plain)
    assert (found - expected).norm() < 0.02 * expected.norm()  # an 8-bit product rounds x, too


def test_a_plain_model_stays_as_it_is(small_llama):
    before = copy.deepcopy(small_llama.state_dict())
    assert plain_dtype(small_llama) == torch.float32
    assert all(torch.equal(before[k], t) for k, t in dequantized(small_llama).state_dict().items())
