"""Every family that ties its output layer to its embedding gives the same numbers once merged, and read again."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from polyvera.adapter.inject import inject
from polyvera.adapter.merge import merge
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.tie import SCALED_BY, TIE

BART = {
    "d_model": 32,
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
    **{f"{side}_{of}": n for side in ("encoder", "decoder") for of, n in (("layers", 1), ("attention_heads", 4))},
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
EXPERTS = {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
# The class, its sizes, and what its config says of the tie once the output layer has changed.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaForCausalLM", LLAMA, False),
    "bart": ("BartForConditionalGeneration", BART, False),
    "t5": ("T5ForConditionalGeneration", T5, False),
    "mt5": ("MT5ForConditionalGeneration", T5, False),
    "longt5": ("LongT5ForConditionalGeneration", T5, False),
    "umt5": ("UMT5ForConditionalGeneration", T5, True),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", T5 | EXPERTS, False),
}


def tied(family: str) -> Any:
    name, sizes, _ = FAMILIES[family]
    kind: Any = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(vocab_size=64, tie_word_embeddings=True, **sizes)).eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **decoder).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_output_layer_means_the_same_in_memory_and_read_again(
    family: str, ids: Tensor, tmp_path, scramble
) -> None:
    model = tied(family)
    targets = ("lm_head", "q_proj" if family in ("llama", "bart") else "q")
    scramble(inject(model, AdapterSpec("lora", 4, targets)))
    wanted = logits(model, ids)
    merged: Any = merge(model)
    torch.testing.assert_close(logits(merged, ids), wanted, rtol=1e-4, atol=1e-4)
    assert getattr(merged.config, TIE) is FAMILIES[family][2]
    if not FAMILIES[family][2]:  # another version of transformers scales nothing without a tie
        assert not getattr(merged.config, SCALED_BY.get(family, ""), False)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(type(merged).from_pretrained(tmp_path), ids), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tie_that_no_adapter_broke_stays(family: str, ids: Tensor, scramble) -> None:
    model = tied(family)
    scramble(inject(model, AdapterSpec("lora", 4, ("q_proj" if family in ("llama", "bart") else "q",))))
    wanted = logits(model, ids)
    merged: Any = merge(model)
    assert getattr(merged.config, TIE) is True
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    torch.testing.assert_close(logits(merged, ids), wanted, rtol=1e-4, atol=1e-4)
