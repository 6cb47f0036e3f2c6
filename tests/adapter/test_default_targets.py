"""The default reaches every block: queries and values of attention, or what mixes tokens where there is none."""

import pytest

from polyvera.adapter.default_targets import block_of, default_targets

LLAMA = [f"model.layers.{i}.{n}" for i in range(2) for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")]
HYBRID = [*LLAMA, "model.layers.2.mixer.in_proj", "model.layers.2.mixer.out_proj", "model.layers.3.mlp.down_proj"]
MLA = [f"m.0.{n}" for n in ("q_a_proj", "q_b_proj", "kv_b_proj")]


@pytest.mark.parametrize(
    ("names", "endings"),
    [
        (LLAMA, {"q_proj", "v_proj"}),
        ([*HYBRID, "model.layers.3.mlp.up_proj"], {"q_proj", "v_proj", "in_proj", "up_proj", "down_proj"}),
        (MLA, {"q_b_proj", "kv_b_proj"}),
        (["m.0.q_proj", "m.0.kv_b_proj"], {"q_proj", "kv_b_proj"}),
        (["attentions.0.q_lin", "attentions.0.v_lin", "ffns.0.fc1", "ffns.0.fc2"], {"q_lin", "v_lin"}),
        (["layers.0.q_proj", "layers.1.k_proj"], {"q_proj"}),
        (["layers.0.in_proj", "layers.0.out_proj"], {"in_proj"}),
        (["other"], set()),
    ],
)
def test_each_block_has_a_row(names, endings):
    found = default_targets(names)
    assert {name.rpartition(".")[2] for name in found} == endings and found <= set(names)


def test_a_block_is_a_list_and_a_number():
    assert block_of("model.layers.3.q_proj") == ("model.layers", "3")
    assert block_of("0.q_proj") == ("", "0")
    assert block_of("lm_head") == ("", "")
