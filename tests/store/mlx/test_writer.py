"""Adapters for mlx-lm: its documented formula gives the logits, for every row of the table."""

import json
from dataclasses import replace

import pytest
import torch
from drawn_adapters import drawn
from mlx_formula import applied
from peft_oracle import here, logits, trained

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import SpecError, StoreError
from polyvera.store.mlx import export_mlx, import_mlx
from polyvera.store.mlx.config import KINDS

SPECS = {"plain": {}, "mixed": {"rank_pattern": (("layers.1.self_attn.q_proj", 2),)}}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_the_documented_formula_gives_the_logits(row, spec, small_llama, tmp_path, ids):
    given = {} if row.shares_basis else SPECS[spec]
    adapter = trained(small_llama, AdapterSpec(row.name, 4, ("q_proj", "down_proj"), **given))
    theirs, config = applied(small_llama, export_mlx(adapter, tmp_path / "a"))
    assert config["fine_tune_type"] == list(KINDS)["m" in row.factors] and config["num_layers"] == -1
    assert config["lora_parameters"]["keys"] == ["mlp.down_proj", "self_attn.q_proj"]
    ours, _ = here(small_llama, adapter)
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)
    again, _ = here(small_llama, import_mlx(tmp_path / "a", small_llama))
    torch.testing.assert_close(logits(again, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)


def test_what_mlx_has_no_place_for_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"no head.*merge"):
        export_mlx(drawn("vera", head={"score.weight": (2, 8)}), tmp_path / "a")
    with pytest.raises(SpecError, match=r"layers\.0\.q is not a layer of model\.layers"):
        export_mlx(drawn("vera"), tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_a_folder_is_replaced_only_where_asked_for(small_llama, tmp_path):
    adapter = replace(trained(small_llama, AdapterSpec(rank=4)), model="org/base")
    export_mlx(adapter, tmp_path / "a", dtype="bfloat16")
    with pytest.raises(StoreError, match="overwrite=True"):
        export_mlx(adapter, tmp_path / "a")
    export_mlx(adapter, tmp_path / "a", overwrite=True)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["model"] == "org/base"
