"""Adapters of ours in PEFT: every row of the table, and what a folder is written over."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft_oracle import TARGETS, assert_same_everywhere, here, in_peft, logits, trained
from safetensors.torch import load_file

from polyvera.adapter.merge import merge
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import BasisError, SpecError, StoreError
from polyvera.store.peft import export_peft, import_peft

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = "adapter_config.json"
SPECS = {"vera": AdapterSpec(rank=8, seed=3), "lora": AdapterSpec("lora", 4)}


@pytest.fixture
def folder_of(small_llama, tmp_path):
    return lambda kind, **options: export_peft(trained(small_llama, SPECS[kind]), tmp_path / kind, **options)


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("magnitude", [False, True], ids=["plain", "magnitude"])
@pytest.mark.parametrize("method", METHODS)
def test_every_row_of_the_table_exports(method, magnitude, dtype, arch, built, tmp_path, ids):
    base = copy.deepcopy(built[arch]).to(dtype)
    head = ("classifier",) if arch == "bert" else ()
    spec = AdapterSpec(method, 4, tuple(TARGETS[arch]), magnitude=magnitude, head=head)
    adapter = trained(base, spec)
    ours, _ = here(base, adapter)
    folder = export_peft(adapter, tmp_path / "native")
    native = in_peft(base, folder)
    again, _ = here(base, import_peft(folder, base))
    assert torch.equal(logits(again, ids), logits(native, ids))
    dense_norm = "A" in spec.row.trained or "m" not in spec.row.trained  # with a frozen A the norm is factored here
    if dense_norm and set(spec.row.trained) <= set(spec.row.peft_keys):
        assert_same_everywhere(ours, native, base, ids)
    if "m" in spec.row.trained:
        with pytest.raises(SpecError, match="magnitude.*merge"):
            export_peft(adapter, tmp_path / "lora", as_lora=True)
        as_lora = native
    else:
        as_lora = in_peft(base, export_peft(adapter, tmp_path / "lora", as_lora=True))
        assert as_lora.peft_config["default"].peft_type.value == "LORA"
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    for model in (native, as_lora):
        torch.testing.assert_close(logits(model, ids), logits(ours, ids), **tolerance)


@pytest.mark.parametrize("hash_size", [None, 16])
@pytest.mark.parametrize("row", [row for row in METHODS.values() if "m" not in row.factors], ids=lambda row: row.name)
def test_a_plain_lora_says_all_by_its_rank_alpha_and_tensors(row, hash_size, small_llama, tmp_path):
    """As llama.cpp (alpha / rows of A) and vLLM (alpha / r) scale, which read no other key."""
    hashed = {} if hash_size is None or not row.hashed else {"hash_size": hash_size}
    mixed = {} if row.shares_basis else {"rank_pattern": (("layers.1.self_attn.q_proj", 2),)}
    adapter = trained(small_llama, AdapterSpec(row.name, 4, ("q_proj", "down_proj"), **hashed, **mixed))
    folder = export_peft(adapter, tmp_path / "lora", as_lora=True)
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / "adapter_model.safetensors")
    assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"))
    model, [slot] = here(small_llama, adapter)
    merged = merge(model, slot)
    for site in adapter.layout.site_names:
        A, B = (tensors[f"base_model.model.{site}.lora_{x}.weight"] for x in "AB")
        assert len(A) == config["r"] == config["lora_alpha"]
        delta = merged.get_submodule(site).weight - small_llama.get_submodule(site).weight
        torch.testing.assert_close(B @ A, delta, rtol=1e-4, atol=1e-6)
        assert bool(delta.any())


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)", "none", "alpha,r"])
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.takes_alpha])
def test_every_scaling_and_pattern_exports(method, scaling, small_llama, tmp_path, ids):
    base = small_llama
    q, v = (f"model.layers.1.self_attn.{x}_proj" for x in "qv")
    alphas = ((v, 9.5), ("q_proj", 2.5))  # a whole name, and an ending that several layers have
    spec = AdapterSpec(method, 4, alpha=6, scaling=scaling, rank_pattern=((q, 2),), alpha_pattern=alphas)
    adapter = trained(base, spec)
    ours, _ = here(base, adapter)
    theirs = in_peft(base, export_peft(adapter, tmp_path / "a"))
    torch.testing.assert_close(logits(theirs, ids), logits(ours, ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(theirs, ids), logits(base, ids), rtol=1e-3, atol=1e-3)


def test_the_name_of_the_base_travels_along(folder_of, small_llama):
    folder = folder_of("lora", model_name="team/base")
    adapter = import_peft(folder, small_llama)
    assert adapter.model == "team/base"
    again = export_peft(adapter, folder.with_name("again"))
    assert json.loads((again / CONFIG).read_text())["base_model_name_or_path"] == "team/base"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_when_asked(folder_of, tmp_path, small_llama):
    folder = folder_of("lora")
    with pytest.raises(StoreError, match="overwrite=True"):
        folder_of("lora")
    (folder / CONFIG).write_text("{}")
    folder_of("lora", overwrite=True)
    assert json.loads((folder / CONFIG).read_text())["r"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match=r"'mine\.txt'"):
        folder_of("lora", overwrite=True)
    assert (folder / "mine.txt").exists()


def test_a_write_that_fails_leaves_the_old_folder(folder_of, tmp_path, monkeypatch):
    folder = folder_of("lora")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr("polyvera.store.peft.writer.json.dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder_of("lora", overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (AdapterSpec(rank=8, init="orthogonal"), {}),
        (AdapterSpec(rank=8, in_max=64), {}),
        (AdapterSpec(rank=8), {"base_dtype": torch.bfloat16}),
        (AdapterSpec(rank=8, basis_dtype="bfloat16"), {"base_dtype": "float32"}),
    ],
)
def test_a_basis_that_peft_would_not_draw_is_not_left_out(spec, options, small_llama, tmp_path):
    adapter = trained(small_llama, spec)
    with pytest.raises(BasisError, match="PEFT would draw another basis"):
        export_peft(adapter, tmp_path / "a", save_projection=False, **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("lora", {"save_projection": False}, "holds none"),
        ("vera", {"as_lora": True, "save_projection": False}, "holds none"),
        ("vera", {"base_dtype": "bfloat16"}, "base_dtype has no effect"),
        ("lora", {"task_type": "SEQ_CLS"}, "no head; use FEATURE_EXTRACTION"),
        ("lora", {"task_type": "QUESTION_ANS"}, "qa_outputs"),
    ],
)
def test_an_export_that_makes_no_sense(kind, options, said, folder_of, tmp_path):
    with pytest.raises(SpecError, match=said):
        folder_of(kind, **options)
    assert not any(tmp_path.iterdir())
