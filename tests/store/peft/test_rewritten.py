"""Layers that PEFT takes for others are refused at export."""

import pytest
import transformers as T

from polyvera.adapter.inject import extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError
from polyvera.store.peft import export_peft
from polyvera.store.peft.rewritten import model_type_of, refusal

SITES = ("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj", "model.layers.0.mixer.out_proj")


@pytest.mark.parametrize(
    ("model_type", "peft_type", "said"),
    [
        ("qwen2_moe", "LORA", "PEFT takes model.layers.0.mlp.down_proj of a qwen2_moe for a part of its experts"),
        ("deepseek_v3", "LORA", "leave out layers named down_proj"),
        ("deepseek_v3", "VERA", ""),
        ("llama", "LORA", ""),
        ("", "LORA", ""),
        ("mamba", "ADALORA", "PEFT refuses model.layers.0.mixer.out_proj of a mamba"),
        ("mamba", "VERA", ""),
    ],
)
def test_what_peft_does_to_a_family_is_known(model_type, peft_type, said):
    found = refusal(model_type, peft_type, SITES)
    assert said in found and bool(said) == bool(found)


def test_an_export_that_peft_would_load_otherwise_is_refused(tmp_path):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = T.Qwen2MoeConfig(**sizes, **heads, num_experts=2, moe_intermediate_size=8, num_experts_per_tok=1)
    T.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    model = T.Qwen2MoeForCausalLM.from_pretrained(tmp_path / "base")
    bank = inject(model, AdapterSpec("lora", rank=2, targets="all-linear"))
    adapter = extract(bank, bank.first, model)
    assert adapter.model == str(tmp_path / "base") and model_type_of(adapter.model) == "qwen2_moe"
    with pytest.raises(SpecError, match="for a part of its experts"):
        export_peft(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_base_that_is_elsewhere_is_of_no_known_family(tmp_path):
    assert model_type_of("") == model_type_of(str(tmp_path)) == ""
