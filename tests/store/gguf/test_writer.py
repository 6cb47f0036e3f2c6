"""GGUF adapters: read back by the gguf package and applied by llama.cpp's rule to a base converted as it converts."""

import copy

import pytest
import torch
import transformers as T
from drawn_adapters import drawn
from peft_oracle import here, logits, trained
from torch.nn.functional import pad

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError, StoreError
from polyvera.store.gguf import export_gguf
from polyvera.store.gguf.writer import gguf_tensors, interleaved

gguf = pytest.importorskip("gguf")
TARGETS = ("q_proj", "k_proj", "v_proj", "down_proj")
PLAIN = [row for row in METHODS.values() if "m" not in row.factors]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "mlp.down_proj": "ffn_down",
}


def read(path):
    """(metadata, tensors) as llama.cpp sees them: a tensor's stated dimensions are reversed."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.from_numpy(t.data.copy()).float() for t in reader.tensors}
    assert all([*t.shape] == [*reversed(tensors[t.name].shape)] for t in reader.tensors)
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def permuted(W, num_heads):
    """llama.cpp's LlamaModel.permute, by its definition: row h, half, i moves to h, i, half."""
    half = W.shape[0] // num_heads // 2
    rows = [h * 2 * half + k * half + i for h in range(num_heads) for i in range(half) for k in (0, 1)]
    return W[rows]


def applied(base, path, permutes):
    """The logits of a base whose GGUF weights carry the adapter: W' = W + alpha / rank (lora_b lora_a)."""
    fields, tensors = read(path)
    model, config = copy.deepcopy(base), base.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if permutes else {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        block, kind = name.split(".")[1:3]
        layer = model.get_submodule(f"model.layers.{block}.{next(k for k, v in NAMES.items() if v == kind)}")
        A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        delta = fields["adapter.lora.alpha"] / A.shape[0] * B @ A
        rows = torch.arange(len(delta))[:, None]
        order = permuted(rows, heads[kind])[:, 0] if kind in heads else rows[:, 0]
        converted = layer.weight.data[order] + delta  # the base in GGUF's order of rows
        layer.weight.data = converted[order.argsort()]
    return model, fields


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_the_readers_rule_gives_the_logits(row, small_llama, tmp_path, ids):
    mixed = {} if row.shares_basis else {"rank_pattern": (("layers.1.self_attn.q_proj", 2),)}
    adapter = trained(small_llama, AdapterSpec(row.name, 4, TARGETS, **mixed))
    theirs, fields = applied(small_llama, export_gguf(adapter, tmp_path / "a.gguf", model=small_llama), True)
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "LORA".lower()
    assert fields["general.architecture"] == "llama" and fields["adapter.lora.alpha"] == 4.0
    ours, _ = here(small_llama, adapter)
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(ours, ids), logits(small_llama, ids), rtol=0, atol=1e-4)


def test_a_family_whose_rows_stay_in_order(tmp_path, ids):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    base = T.Qwen2ForCausalLM(T.Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    adapter = trained(base, AdapterSpec(rank=4, targets=TARGETS))
    theirs, fields = applied(base, export_gguf(adapter, tmp_path / "a.gguf", model=base, dtype="float32"), False)
    ours, _ = here(base, adapter)
    assert fields["general.architecture"] == "qwen2"
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)


def test_rows_are_interleaved_head_by_head():
    rows = torch.arange(12)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(interleaved(pad(rows, (0, 1)), 2), permuted(pad(rows, (0, 1)), 2))


def test_what_has_no_place_in_a_gguf_adapter_is_refused(small_llama, small_bert, tmp_path):
    adapter = trained(small_llama, AdapterSpec(rank=4, targets=TARGETS))
    with pytest.raises(SpecError, match="needs the base's configuration"):
        export_gguf(adapter, tmp_path / "a.gguf", model=None)
    with pytest.raises(SpecError, match=r"float32 or float16"):
        export_gguf(adapter, tmp_path / "a.gguf", model=small_llama, dtype="bfloat16")
    with pytest.raises(SpecError, match="bert"):
        gguf_tensors(adapter, small_bert)
    with pytest.raises(SpecError, match=r"magnitude.*merge"):
        gguf_tensors(trained(small_llama, AdapterSpec("dora", 4, TARGETS)), small_llama)
    with pytest.raises(SpecError, match="holds no head"):
        gguf_tensors(drawn("vera", head={"score.weight": (2, 8)}), small_llama)
    with pytest.raises(SpecError, match=r"layers\.0\.q has no weight of its own"):
        gguf_tensors(drawn("vera"), small_llama)
    small_llama.config.tie_word_embeddings = True
    with pytest.raises(SpecError, match="lm_head has no weight of its own"):
        gguf_tensors(trained(small_llama, AdapterSpec(rank=4, targets=("lm_head",))), small_llama)
    assert not any(tmp_path.iterdir())


def test_a_file_is_replaced_only_where_asked_for(small_llama, tmp_path):
    adapter = trained(small_llama, AdapterSpec(rank=4))
    path = export_gguf(adapter, tmp_path / "a.gguf", model=small_llama)
    with pytest.raises(StoreError, match="overwrite"):
        export_gguf(adapter, path, model=small_llama)
    export_gguf(adapter, path, model=small_llama, overwrite=True, dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
