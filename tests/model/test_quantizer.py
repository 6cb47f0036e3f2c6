"""Quantized bases the whole way: trained, served, merged and reloaded, or refused before a step is made."""

import json
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS, counting_rows, make_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.inject import load
from polyvera.adapter.merge import merge
from polyvera.adapter.route import route
from polyvera.cli import app
from polyvera.engine.factory import engine_for
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import LayoutError, RecipeError, ServeError
from polyvera.model.load import load_base
from polyvera.model.quantizer import QUANTIZERS, Quantizer, quantizer_of
from polyvera.model.shapes import model_shapes
from polyvera.store.registry import Registry
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

IDS = torch.tensor([[7, 8, 9, 10]])
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS_OF = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def bits(**choices: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return import_module("transformers").BitsAndBytesConfig(**choices)


def torchao(name: str, *choices: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    return import_module("transformers").TorchAoConfig(getattr(quantization, name)(*choices))


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
# name: how a base is quantized, the dtype it is stored in, and how far the merged one may be.
WHOLE_WAY = {
    "nf4": (lambda: bits(**NF4), torch.float32, 1e-5),
    "torchao int8": (lambda: torchao("Int8WeightOnlyConfig"), torch.float32, 1e-5),
    "torchao int8, bf16": (lambda: torchao("Int8WeightOnlyConfig"), torch.bfloat16, 0.05),
    "torchao int4": (lambda: torchao("IntxWeightOnlyConfig", torch.int4), torch.bfloat16, 0.05),
    "torchao fp8": (lambda: torchao("Float8WeightOnlyConfig"), torch.float32, 1e-5),
}


def quantized(folder: Path, config: Any, dtype: torch.dtype) -> str:
    """A tiny model that was quantized and saved, as people have it."""
    torch.manual_seed(0)
    plain = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, initializer_range=0.2, **SIZES, **IDS_OF)
    LlamaForCausalLM(plain).save_pretrained(folder / "plain")
    made = AutoModelForCausalLM.from_pretrained(folder / "plain", quantization_config=config, dtype=dtype)
    made.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    return str(folder / "base")


def recipe(folder: Path, base: str) -> Recipe:
    data = folder / "orders.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in counting_rows(8)))
    return Recipe(model=base, data=str(data), method="lora", rank=2, targets="all-linear", max_steps=2)


@pytest.mark.parametrize("kind", WHOLE_WAY)
def test_a_base_quantized_by_its_weights_goes_the_whole_way(kind: str, tmp_path: Path) -> None:
    make, dtype, tolerance = WHOLE_WAY[kind]
    name = quantized(tmp_path, make(), dtype)
    trained = train(recipe(tmp_path, name), progress=False).adapter
    noise = torch.randn(trained.flat.shape, generator=torch.Generator().manual_seed(5))
    adapter = replace(trained, flat=0.2 * noise.to(trained.flat.dtype))
    base = load_base(name)
    assert base.model.dtype == dtype
    with torch.no_grad():
        bare = base.model(IDS).logits
        [slot] = load(base.model, adapter)
        with route(slot):
            expected = base.model(IDS).logits
            own = base.model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, 4:].tolist()
        assert (expected - bare).abs().max() > 0.5 * bare.abs().max()
        merge(base.model, slot, dequantize=True).save_pretrained(tmp_path / "merged")
        found = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)(IDS).logits
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    store = Registry(tmp_path / "store")
    ref = store.put("a", adapter)
    with engine_for(load_base(name), store, Limits(max_rows=2)) as engine:
        params = SamplingParams(max_tokens=4, min_tokens=4)
        assert engine.answer(IDS[0].tolist(), ref, params).result(60).ids == own


def test_eight_bits_of_inputs_train_and_are_not_served(tmp_path: Path) -> None:
    name = quantized(tmp_path, bits(load_in_8bit=True), torch.float32)
    asked = recipe(tmp_path, name)
    assert train(asked, progress=False).adapter.flat.isfinite().all()
    both = asked.replaced(fleet=True, data=str(tmp_path / "tenants"))
    (tmp_path / "tenants").mkdir()
    for tenant in ("ann", "bob"):
        (tmp_path / "tenants" / f"{tenant}.jsonl").write_bytes((tmp_path / "orders.jsonl").read_bytes())
    with pytest.raises(RecipeError, match=r"q_proj rounds what it reads.*train each tenant alone"):
        train_fleet(both)
    with (
        pytest.raises(
            ServeError, match=r"q_proj rounds what it reads to few bits.*serve what merge --dequantize writes"
        ),
        engine_for(load_base(name), Registry(tmp_path / "store")),
    ):
        pass


def test_a_base_that_passes_no_gradient_is_refused_before_a_step(tmp_path: Path) -> None:
    config = torchao("Int8DynamicActivationInt8WeightConfig")
    name = quantized(tmp_path, config, torch.float32)
    with pytest.raises(
        RecipeError, match=r"_proj is quantized in a form that passes no gradient on.*the weights alone"
    ):
        train(recipe(tmp_path, name), progress=False)


def test_what_cannot_be_loaded_here_is_planned_with_a_word(tmp_path: Path) -> None:
    plain = LlamaConfig(vocab_size=len(WORDS), **SIZES)
    assert model_shapes(plain).refusal == ""
    plain.quantization_config = {"quant_method": "aqlm" if find_spec("aqlm") is None else "quanto"}
    assert "aqlm" in model_shapes(plain).refusal or "quanto" in model_shapes(plain).refusal
    plain.save_pretrained(tmp_path)
    assert "cannot be loaded on this machine" in CliRunner().invoke(app, ["plan", str(tmp_path)]).stderr


def test_what_a_quantizer_needs_is_a_row() -> None:
    assert quantizer_of(LlamaConfig()) == Quantizer() == quantizer_of({"quantization_config": {"quant_method": "gptq"}})
    for method, row in QUANTIZERS.items():
        assert quantizer_of({"quantization_config": {"quant_method": method}}) is row
        assert quantizer_of(LlamaConfig(quantization_config={"quant_method": method})) is row


def test_compressed_tensors_are_plain_weights_from_the_start(tmp_path: Path) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="compressed-tensors is not installed")
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    name = quantized(tmp_path, None, torch.float32)
    model = LlamaForCausalLM.from_pretrained(name)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    marks = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "frozen"}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"], **marks))
    for layer in (m for m in model.modules() if hasattr(m, "weight_scale")):
        layer.weight_scale.data = layer.weight.data.abs().amax(-1, keepdim=True) / 127
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(name)
    compressor.update_config(name)
    assert "weight_packed" in "".join(import_module("safetensors").safe_open(f"{name}/model.safetensors", "pt").keys())
    adapter = train(recipe(tmp_path, name), progress=False).adapter
    load(load_base(name).model, adapter)  # the fingerprint is the trained one's


def test_weights_of_4_bits_pass_gradients_on_and_are_read_back_after_a_forward(tmp_path: Path) -> None:
    model = load_base(quantized(tmp_path, bits(**NF4), torch.float32)).model
    layer = model.get_submodule("model.layers.1.mlp.up_proj")
    x = torch.randn(3, SIZES["hidden_size"])
    with torch.no_grad():
        first = layer(x)
        model(IDS)
    again = layer(x.requires_grad_(True))
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, x.detach() @ dense_weight(layer).T, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(again.sum(), x)[0].any()


def test_the_experts_of_a_quantized_mixture_are_merged_into_plain_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, **IDS_OF, "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(tmp_path / "plain")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=bits(**NF4))
    made.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    asked = recipe(tmp_path, str(tmp_path / "base")).replaced(targets="experts")
    trained = train(asked, progress=False).adapter
    assert trained is not None
    base = load_base(asked.model)
    [slot] = load(base.model, trained)
    with pytest.raises(LayoutError, match="--dequantize"):
        merge(base.model, slot)
    with torch.no_grad(), route(slot):
        expected = base.model(IDS).logits
    merge(base.model, slot, dequantize=True).save_pretrained(tmp_path / "merged")
    make_tokenizer().save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        found = load_base(str(tmp_path / "merged")).model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
