"""shapes: the sizes of real models from their configurations alone."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
)

from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError, TargetError
from polyvera.model.config import CAUSAL_LM, CLASSIFICATION, ENCODER
from polyvera.model.shapes import (
    MAX_CONFIG_BYTES,
    meta_model,
    model_shapes,
    read_config,
)
from polyvera.plan import compare, cost, full_cost

ROBERTA_BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
ROBERTA_LARGE = {
    **ROBERTA_BASE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("sizes", "num_sites", "width", "rank", "num_params"),
    [(ROBERTA_BASE, 24, 768, 1024, 43_008), (ROBERTA_LARGE, 48, 1024, 256, 61_440)],
)
def test_roberta_has_the_shapes_of_the_vera_paper(sizes, num_sites, width, rank, num_params):
    shapes = model_shapes(RobertaConfig(**sizes))
    assert list(shapes.sites.values()) == [(width, width)] * num_sites
    assert {name.rpartition(".")[2] for name in shapes.sites} == {"query", "value"}
    assert cost(AdapterSpec(rank=rank), shapes.sites, shapes.num_params).num_params == num_params


def test_roberta_base_counts_as_published():
    assert model_shapes(RobertaConfig(**ROBERTA_BASE)).num_params == 124_645_632  # 125M


def test_gpt3_in_fp16_is_350_gb():
    shapes = model_shapes(GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048))
    full = full_cost(shapes.num_params, base_dtype="float16")
    assert full.stored_bytes == pytest.approx(350e9, rel=0.005)
    assert list(shapes.sites.values()) == [(12288, 3 * 12288)] * 96


def test_llama3_8b_full_fine_tuning_is_128_gb():
    shapes = model_shapes(LlamaConfig(**LLAMA3_8B))
    assert shapes.num_params == 8_030_261_248
    assert full_cost(shapes.num_params).training_bytes == pytest.approx(128e9, rel=0.005)
    assert set(shapes.sites.values()) == {(4096, 4096), (4096, 1024)}


def test_llama_7b_all_linear_agrees_with_the_paper():
    shapes = model_shapes(LlamaConfig(), AdapterSpec(targets="all-linear"))  # the class's defaults are the 7B
    rows = {row.method: row.num_params for row in compare(shapes.sites, shapes.num_params, rank=64)}
    assert rows["lora"] == 159_907_840
    assert cost(AdapterSpec(rank=1024), shapes.sites, shapes.num_params).num_params == 1_589_248


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_count_once(tied):
    config = LlamaConfig(**TINY, tie_word_embeddings=tied)
    real = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    shapes = model_shapes(config)
    assert shapes.num_params == real
    assert shapes.num_params - model_shapes(config, kind=ENCODER).num_params == (0 if tied else 32 * 16)


def test_the_meta_model_holds_no_numbers_and_leaves_the_configuration_alone():
    config = RobertaConfig(**TINY, num_labels=2)
    before = config.to_dict()
    model = meta_model(config, num_labels=5)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.config.num_labels == 5
    assert config.to_dict() == before
    assert torch.zeros(1).device.type == "cpu"


def test_a_head_asked_of_an_encoder_makes_a_classifier_and_is_priced():
    spec = AdapterSpec(rank=4, head=("classifier",))
    shapes = model_shapes(RobertaConfig(**TINY), spec, num_labels=3)
    assert shapes.name == "RobertaForSequenceClassification"
    assert shapes.head["classifier.out_proj.weight"] == (3, 16)
    each = cost(spec, shapes.sites, shapes.num_params, head=shapes.head)
    assert each.num_head_params == 16 * 16 + 16 + 3 * 16 + 3
    assert model_shapes(RobertaConfig(**TINY), spec).name == "RobertaForSequenceClassification"


def test_a_kind_can_be_asked_for():
    assert model_shapes(LlamaConfig(**TINY), kind=CLASSIFICATION).name == "LlamaForSequenceClassification"
    with pytest.raises(SpecError, match="did you mean 'classification'"):
        meta_model(LlamaConfig(**TINY), kind="clasification")
    with pytest.raises(SpecError, match="does not use num_labels=3"):
        meta_model(LlamaConfig(**TINY), kind=CAUSAL_LM, num_labels=3)


def test_the_dtype_is_the_configurations():
    assert model_shapes(LlamaConfig(**TINY, dtype="bfloat16")).dtype == "bfloat16"
    assert model_shapes(LlamaConfig(**TINY)).dtype is None


# --- from a path -----------------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_an_object_agree(tmp_path):
    config = LlamaConfig(**TINY)
    config.save_pretrained(tmp_path)
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "config.json").read_text())
    for source in (tmp_path, str(tmp_path), tmp_path / "config.json", str(other)):
        assert model_shapes(source) == model_shapes(config)


def test_read_config_gives_a_copy():
    config = LlamaConfig(**TINY)
    assert read_config(config) is not config
    assert read_config(config).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{oops", "is not a model configuration"),
        ("[1]", "is not a model configuration: a list, where an object is wanted"),
        ("[" * 100_000 + "]" * 100_000, "is not a model configuration: maximum recursion depth"),
        ('{"hidden_size": 3}', "model_type=None"),
        ('{"model_type": "lama"}', "did you mean 'llama'"),
        ('{"model_type": "lama", "auto_map": {"AutoConfig": "c.C"}}', "code of its own, which is never run"),
        ('{"model_type": ["llama"]}', "model_type="),
        ('{"model_type": "llama", "hidden_size": "wide"}', "no configuration of a known model"),
        ('{"model_type": "llama", "vocab_size": -4}', "no causal-lm model can be built from LlamaConfig"),
    ],
)
def test_a_broken_configuration_is_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=said):
        model_shapes(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SpecError, match="is not a model configuration"):
        model_shapes(tmp_path)


def test_a_file_of_weights_is_refused_unread(tmp_path):
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(SpecError, match="more than"):
        model_shapes(weights)


def test_a_folder_without_a_configuration_says_what_it_holds(tmp_path):
    (tmp_path / "config.jsn").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(SpecError, match=r"holds config.jsn, model.safetensors; did you mean 'config.jsn'"):
        model_shapes(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="it holds nothing"):
        model_shapes(tmp_path / "empty")


def test_a_path_that_is_not_there_names_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "models" / "smollm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "models" / "smolm", "models/smolm", "./models/smolm"):
        with pytest.raises(SpecError, match=r"no folder or file .*did you mean 'smollm'"):
            model_shapes(source)
    with pytest.raises(SpecError, match=r"no folder or file 'nowhere\.json' here"):
        model_shapes("nowhere.json")


def test_a_hub_id_that_cannot_be_had_is_refused(tmp_path, monkeypatch):
    def refuse(source, **_):
        raise OSError(f"{source} is not in the cache\nand more")

    (tmp_path / "smollm").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        SpecError, match=r"none came from the hub; did you mean 'smollm'\?: smolm is not in the cache and more$"
    ):
        model_shapes("smolm")


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(TargetError, match="did you mean 'q_proj'"):
        model_shapes(LlamaConfig(**TINY), AdapterSpec(targets=("q_prj",)))


def test_a_quantized_checkpoint_counts_its_plain_shapes(tmp_path):
    plain = LlamaConfig(**TINY).to_dict()
    quantized = {**plain, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    assert model_shapes(tmp_path).num_params == model_shapes(LlamaConfig(**TINY)).num_params
