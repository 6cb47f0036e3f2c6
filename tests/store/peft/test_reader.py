"""PEFT folders in and out: PEFT itself is the oracle, and every comparison of logits is torch.equal."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, VeraConfig
from peft_oracle import KINDS, TARGETS, TASKS, assert_same_everywhere, here, in_peft, logits, saved_by_peft, trained
from safetensors.torch import load_file, save_file

from polyvera.adapter.basis import draw_basis, given_basis
from polyvera.adapter.inject import banks_of, extract, load
from polyvera.adapter.route import route
from polyvera.adapter.spec import GIVEN, AdapterSpec, BasisKey
from polyvera.store.peft import export_peft, import_peft

pytestmark = pytest.mark.filterwarnings("ignore")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_arch = pytest.mark.parametrize("arch", TARGETS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
both_modes = pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])


@pytest.fixture
def base_of(built):
    return lambda arch, dtype=torch.float32: copy.deepcopy(built[arch]).to(dtype)


@pytest.fixture
def peft_folder(tmp_path):
    return lambda base, config, name="adapter", **options: saved_by_peft(tmp_path / name, base, config, **options)


# --- from PEFT -------------------------------------------------------------------------------------------------------


@each_arch
@each_dtype
@each_kind
def test_an_imported_adapter_and_its_export_give_pefts_own_logits(arch, dtype, kind, base_of, peft_folder, ids):
    base = base_of(arch, dtype)
    folder = peft_folder(base, KINDS[kind](TARGETS[arch]), task=TASKS[arch], prune=kind == "pruned")
    theirs = in_peft(base, folder)
    adapter = import_peft(folder, base)
    ours, _ = here(base, adapter)
    assert_same_everywhere(ours, theirs, base, ids)
    assert sorted(adapter.spec.targets) == sorted(TARGETS[arch])
    again = in_peft(base, export_peft(adapter, folder.with_name("again")))
    assert_same_everywhere(again, theirs, base, ids)


@each_arch
@each_kind
def test_there_and_back_again_keeps_every_bit(arch, kind, base_of, peft_folder):
    base = base_of(arch)
    folder = peft_folder(base, KINDS[kind](TARGETS[arch]), task=TASKS[arch], prune=kind == "pruned")
    stored = kind != "vera-drawn"
    options = {"save_projection": False} if not stored else {}
    back = export_peft(import_peft(folder, base), folder.with_name("back"), model=base, **options)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    given, written = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, back))
    kept = ("peft_type", "task_type", "r", "init_r", "lora_alpha", "use_dora", "use_rslora", "projection_prng_key")
    assert {k: given[k] for k in kept if k in given and k in written} == {k: written[k] for k in kept if k in written}
    assert written["target_modules"] == sorted(given["target_modules"])


@each_kind
def test_a_base_on_the_meta_device_is_enough(kind, base_of, peft_folder):
    base = base_of("llama", torch.bfloat16)
    folder = peft_folder(base, KINDS[kind](TARGETS["llama"]), prune=kind == "pruned")
    adapter, shapes_only = import_peft(folder, base), import_peft(folder, copy.deepcopy(base).to("meta"))
    assert torch.equal(adapter.flat, shapes_only.flat)
    assert (adapter.spec, adapter.layout) == (shapes_only.spec, shapes_only.layout)
    assert adapter.base and not shapes_only.base


def test_adalora_keeps_the_rank_of_each_layer(base_of, peft_folder):
    base = base_of("llama")
    adapter = import_peft(peft_folder(base, KINDS["pruned"](TARGETS["llama"]), prune=True), base)
    assert sorted({site.rank for site in adapter.layout.sites}) == [0, 4]
    assert {site.scale for site in adapter.layout.sites} == {(7.0, 6 + 1e-5)}


@pytest.mark.parametrize(
    "choices",
    [
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": r".*\.[02]\.(self_attn\.[qk]|mlp\.up)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},  # PEFT saves the base's own lm_head too
    ],
)
def test_the_layers_are_those_that_peft_adapts(choices, base_of, peft_folder, ids):
    base = base_of("llama")
    folder = peft_folder(base, LoraConfig(r=4, **choices))
    ours, _ = here(base, import_peft(folder, base))
    assert_same_everywhere(ours, in_peft(base, folder), base, ids)


@each_dtype
def test_a_whole_head_is_imported_and_exported(dtype, base_of, peft_folder, ids):
    base = base_of("bert", dtype)
    folder = peft_folder(base, KINDS["vera"](["query"]), task="SEQ_CLS")
    adapter = import_peft(folder, base)
    assert adapter.spec.head == ("classifier",)
    assert {k for k, _ in adapter.layout.head} == {"classifier.weight", "classifier.bias"}
    back = export_peft(adapter, folder.with_name("back"))
    assert json.loads((back / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    ours, _ = here(base, adapter)
    assert_same_everywhere(ours, in_peft(base, back), base, ids)


# --- the basis -------------------------------------------------------------------------------------------------------


@each_dtype
def test_a_stored_basis_is_named_by_the_key_that_draws_it(dtype, base_of, peft_folder):
    base = base_of("llama", dtype)
    adapter = import_peft(peft_folder(base, KINDS["vera"](TARGETS["llama"])), base)
    assert adapter.given is None
    assert adapter.layout.basis == BasisKey("kaiming_uniform", 3, 8, 48, 32, str(dtype).removeprefix("torch."))


def test_a_basis_that_no_key_draws_is_kept_as_it_is(base_of, peft_folder, ids):
    base = base_of("llama")
    folder = peft_folder(base, KINDS["vera"](TARGETS["llama"]))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.vera_A"][0, 0] += 1e-3
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    adapter = import_peft(folder, base)
    assert adapter.spec.init == GIVEN
    assert adapter.basis_sha256 == given_basis(tensors["base_model.vera_A"], tensors["base_model.vera_B"]).sha256
    ours, _ = here(base, adapter)
    assert_same_everywhere(ours, in_peft(base, folder), base, ids)
    back = export_peft(adapter, folder.with_name("back"))
    assert_same_everywhere(ours, in_peft(base, back), base, ids)
    assert import_peft(back, base).basis_sha256 == adapter.basis_sha256


def test_basis_dtype_overrides_the_bases_own(base_of, peft_folder, ids):
    """Trained on a bf16 base and served on an fp32 one: PEFT itself would silently draw another basis."""
    low, full = base_of("llama", torch.bfloat16), base_of("llama")
    stored = import_peft(peft_folder(low, KINDS["vera"](TARGETS["llama"]), "stored"), full)
    folder = peft_folder(low, KINDS["vera-drawn"](TARGETS["llama"]), "drawn")
    assert import_peft(folder, full).basis_sha256 != stored.basis_sha256
    for asked in ("bfloat16", torch.bfloat16):
        adapter = import_peft(folder, full, basis_dtype=asked)
        assert adapter.basis_sha256 == stored.basis_sha256
        assert torch.equal(adapter.flat, stored.flat)


def test_a_wider_basis_is_sliced_for_peft_and_known_again(base_of, tmp_path, ids):
    base = base_of("llama")
    spec = AdapterSpec(rank=8, targets=("k_proj",), in_max=64, out_max=96, init="orthogonal", seed=5)
    adapter = trained(base, spec)
    folder = export_peft(adapter, tmp_path / "wide")
    assert load_file(folder / "adapter_model.safetensors")["base_model.vera_B"].shape == (16, 8)
    ours, _ = here(base, adapter)
    assert_same_everywhere(ours, in_peft(base, folder), base, ids)
    again = import_peft(folder, base)
    assert (again.layout.basis, again.basis_sha256, again.given) == (adapter.layout.basis, adapter.basis_sha256, None)


def test_an_fp32_basis_on_a_bf16_base_survives_the_export(base_of, tmp_path, ids):
    base = base_of("llama", torch.bfloat16)
    adapter = trained(base, AdapterSpec(rank=8))
    assert adapter.layout.basis.dtype == "float32"
    ours, _ = here(base, adapter)
    assert_same_everywhere(ours, in_peft(base, export_peft(adapter, tmp_path / "kept")), base, ids)


# --- many together ---------------------------------------------------------------------------------------------------

PAIRS = {
    "bases": (
        lambda: VeraConfig(r=8, projection_prng_key=3, target_modules=["q_proj", "down_proj"]),
        lambda: VeraConfig(r=6, projection_prng_key=4, target_modules=["q_proj", "v_proj"]),
    ),
    "rows": (
        lambda: VeraConfig(r=8, save_projection=False, target_modules=["q_proj", "v_proj"]),
        lambda: LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "k_proj"]),
    ),
    "banks": (
        lambda: VeraConfig(r=8, target_modules=["q_proj", "v_proj"]),
        lambda: VeraConfig(r=8, target_modules=["q_proj", "v_proj"]),
    ),
}


@both_modes
@each_dtype
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["ab", "ba"])
@pytest.mark.parametrize("pair", PAIRS)
def test_two_imported_adapters_live_side_by_side(pair, order, dtype, grad, base_of, peft_folder, ids):
    base = base_of("llama", dtype)
    folders = [peft_folder(base, make(), f"{i}", seed=i) for i, make in enumerate(PAIRS[pair])]
    alone = [logits(in_peft(base, f), ids, grad) for f in folders]
    model, slots = here(base, *(import_peft(folders[i], base) for i in order))
    for slot, i in zip(slots, order, strict=True):
        with route(slot):
            assert torch.equal(logits(model, ids, grad), alone[i])
    rows = [slots[0], 0, slots[1], slots[0]]
    with route(rows):
        mixed = logits(model, ids, grad)
    wanted = {slots[0]: alone[order[0]], slots[1]: alone[order[1]], 0: logits(base, ids, grad)}
    for row, slot in enumerate(rows):
        assert torch.equal(mixed[row], wanted[slot][row])


@each_dtype
def test_loading_one_never_changes_another_and_each_leaves_alone(dtype, base_of, peft_folder, ids):
    base = base_of("llama", dtype)
    folders = [peft_folder(base, make(), f"{i}", seed=i) for i, make in enumerate(PAIRS["bases"] + PAIRS["banks"])]
    adapters, model, slots, before = [import_peft(f, base) for f in folders], copy.deepcopy(base), [], []
    for adapter in adapters:
        slots += load(model, adapter)
        with route(slots[-1]):
            before.append(logits(model, ids))
    for slot, folder, first in zip(slots, folders, before, strict=True):
        bank = next(b for b in banks_of(model) if slot in b.slots)
        left = export_peft(extract(bank, slot), folder.with_name(f"left{slot}"))
        with route(slot):
            now = logits(model, ids)
        assert torch.equal(now, first)
        assert torch.equal(now, logits(in_peft(base, folder), ids))
        assert torch.equal(now, logits(in_peft(base, left), ids))


def test_a_basis_is_one_storage_for_all_that_share_it(base_of, peft_folder):
    base = base_of("llama", torch.bfloat16)
    folders = [peft_folder(base, make(), f"{i}", seed=i) for i, make in enumerate(PAIRS["banks"])]
    first, second = (import_peft(Path(f), base).basis() for f in folders)
    assert first is second is draw_basis(first.key)
