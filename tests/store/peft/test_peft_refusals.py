"""What the PEFT door refuses, and what it says."""

from __future__ import annotations

import copy
import json
import struct
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from polyvera.adapter.inject import extract, inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import linear_layers
from polyvera.errors import BasisError, FormatError, LayoutError, PolyveraError, SpecError
from polyvera.store.peft import export_peft, import_peft
from polyvera.store.peft.config import PeftConfig
from polyvera.store.peft.sites import sites_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
SPECS = {
    "vera": AdapterSpec(rank=8, targets=("q_proj", "v_proj"), seed=3),
    "lora": AdapterSpec("lora", 4, ("q_proj", "v_proj")),
    "adalora": AdapterSpec("adalora", 4, ("q_proj", "v_proj")),
}


@pytest.fixture
def folder_of(small_llama, tmp_path):
    def write(kind="vera", **options):
        bank = inject(copy.deepcopy(small_llama), SPECS[kind])
        return export_peft(extract(bank, bank.first), tmp_path / kind, **options)

    return write


def change_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return folder


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "some"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["q_proj.weight"]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 1}),
        ("kasa_config", {"beta": 0.1}),
        ("velora_config", {"num_groups": 2}),
        ("monteclora_config", {"num_samples": 2}),
        ("layer_replication", [[0, 2]]),
        ("megatron_config", {"a": 1}),
        ("task_type", "CHAT"),
        ("peft_type", "LOHA"),
        ("peft_type", "lora"),
    ],
)
def test_a_choice_that_would_change_the_result_is_refused_by_name(key, value, folder_of, small_llama):
    folder = change_config(folder_of("lora"), **{key: value})
    with pytest.raises(SpecError, match=key):
        import_peft(folder, small_llama)


def test_a_magnitude_that_peft_itself_refuses(folder_of, small_llama):
    for kind in ("vera", "adalora"):
        with pytest.raises(SpecError, match="use_dora"):
            import_peft(change_config(folder_of(kind), use_dora=True), small_llama)


def test_harmless_keys_are_fine(folder_of, small_llama):
    folder, harmless = (
        folder_of("lora"),
        {"eva_config": {"rho": 2.0}, "a_note": "x", "peft_version": "9", "revision": "main"},
    )
    plain = import_peft(folder, small_llama)
    again = import_peft(change_config(folder, init_lora_weights="eva", loftq_config={}, **harmless), small_llama)
    assert torch.equal(plain.flat, again.flat)
    assert plain.spec == again.spec


def test_basis_dtype_is_refused_where_it_decides_nothing(folder_of, small_llama):
    for kind in ("vera", "lora"):
        with pytest.raises(SpecError, match="basis_dtype=bfloat16 has no effect"):
            import_peft(folder_of(kind), small_llama, basis_dtype="bfloat16")


def test_a_base_of_two_low_dtypes_must_be_told(folder_of, small_llama):
    folder = change_config(folder_of(save_projection=False), basis_dtype=None, basis_sha256=None)
    for name, layer in linear_layers(small_llama).items():
        layer.to(torch.float16 if "q_proj" in name else torch.bfloat16)
    with pytest.raises(SpecError, match="bfloat16 and float16.*say basis_dtype"):
        import_peft(folder, small_llama)
    assert import_peft(folder, small_llama, basis_dtype="float32").layout.basis.dtype == "float32"


def test_alpha_zero_means_something_else_in_adalora(folder_of, small_llama):
    with pytest.raises(SpecError, match="lora_alpha=0"):
        import_peft(change_config(folder_of("adalora"), lora_alpha=0), small_llama)


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "\xff", "[" * 10_000, '{"peft_type": "LORA"', "nul", '{"peft_type": NaN}']
)
def test_a_config_that_is_none(text, folder_of, small_llama):
    folder = folder_of("lora")
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=CONFIG):
        import_peft(folder, small_llama)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "absent"),
        ("target_modules", [1]),
        ("target_modules", "(q_proj"),
        ("r", None),
        ("r", 0),
        ("r", -4),
        ("r", 4.0),
        ("r", True),
        ("r", "4"),
        ("r", 10**12),
        ("lora_alpha", None),
        ("lora_alpha", "8"),
        ("lora_alpha", float("nan")),
        ("lora_dropout", 1.0),
        ("use_rslora", "yes"),
        ("rank_pattern", {"q_proj": "4"}),
        ("rank_pattern", {"q_proj": [True, False]}),
        ("rank_pattern", {"(q_proj": 4}),
        ("modules_to_save", "score"),
    ],
)
def test_a_config_value_that_cannot_be(key, value, folder_of, small_llama):
    with pytest.raises(FormatError, match=r"regular expression" if "(" in str(value) else key):
        import_peft(change_config(folder_of("lora"), **{key: value}), small_llama)


@pytest.mark.parametrize("mask", [[True], 4, [1, 1, 1, 1]])
def test_a_mask_of_another_length(mask, folder_of, small_llama):
    folder = change_config(folder_of("adalora"), rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": mask})
    with pytest.raises(FormatError, match="rank_pattern"):
        import_peft(folder, small_llama)


def test_a_huge_config_is_not_read(folder_of, small_llama):
    folder = folder_of("lora")
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(FormatError, match="this is not a PEFT config"):
        import_peft(folder, small_llama)


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_cut_file(cut, folder_of, small_llama):
    path = folder_of("lora") / WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        import_peft(path.parent, small_llama)


def test_a_header_that_lies_about_its_length(folder_of, small_llama):
    path = folder_of("lora") / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        import_peft(path.parent, small_llama)


def test_a_pickle_is_read_only_where_asked_for_and_only_as_tensors(folder_of, small_llama):
    folder = folder_of("lora")
    wanted = import_peft(folder, small_llama)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=r"adapter_model\.bin is a pickle.*--pickle"):
        import_peft(folder, small_llama)
    assert torch.equal(import_peft(folder, small_llama, pickle=True).flat, wanted.flat)
    torch.save({"x": SimpleNamespace()}, folder / "adapter_model.bin")
    with pytest.raises(FormatError, match="not a plain state dict"):
        import_peft(folder, small_llama, pickle=True)


def test_a_folder_that_is_none(folder_of, small_llama, tmp_path):
    folder = folder_of("lora")
    for path, said in (
        (tmp_path, "holds the adapters lora"),
        (tmp_path / "none", "there is no folder"),
        (folder, WEIGHTS),
    ):
        (folder / WEIGHTS).unlink() if path == folder else None
        with pytest.raises(FormatError, match=said):
            import_peft(path, small_llama)


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "error", "said"),
    [
        ("lora", lambda t: t.pop(f"{Q}.lora_A.weight"), FormatError, "1 of 12 tensors are missing.*q_proj.lora_A"),
        ("vera", lambda t: t.pop("base_model.vera_B"), FormatError, "missing.*vera_B"),
        ("lora", lambda t: t.update({f"{Q}.lora_B.bias": torch.zeros(32)}), FormatError, "q_proj.lora_B.bias"),
        ("lora", lambda t: t.update({"x": torch.zeros(1)}), FormatError, "'x'"),
        (
            "lora",
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}),
            FormatError,
            "embed_tokens",
        ),
        (
            "lora",
            lambda t: t.update({"base_model.model.model.norm.weight": torch.full((32,), 9.0)}),
            FormatError,
            r"model\.norm\.weight.*would change the result",
        ),
        ("lora", lambda t: t[f"{Q}.lora_A.weight"].fill_(torch.nan), FormatError, "not finite"),
        ("vera", lambda t: t[f"{Q}.vera_lambda_b"].fill_(torch.inf), FormatError, "not finite"),
        ("lora", lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 32).int()}), FormatError, "dtype I32"),
        ("lora", lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(5, 32)}), LayoutError, r"\(5, 32\).*\(4, 32\)"),
        ("lora", lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(128)}), LayoutError, r"\(128,\).*\(4, 32\)"),
        ("adalora", lambda t: t.update({f"{Q}.lora_E": torch.zeros(4)}), LayoutError, r"\(4,\).*\(4, 1\)"),
        ("vera", lambda t: t.update({"base_model.vera_A": torch.zeros(8, 31)}), LayoutError, r"vera_A.*\(8, 31\)"),
        ("vera", lambda t: t.update({"base_model.vera_A": torch.zeros(9, 32)}), LayoutError, r"vera_A.*\(9, 32\)"),
        ("vera", lambda t: t.update({"base_model.vera_A": torch.zeros(8, 4096)}), LayoutError, r"vera_A.*\(8, 4096\)"),
        ("vera", lambda t: t.update({"base_model.vera_A": torch.zeros(8)}), LayoutError, r"vera_A.*\(8,\)"),
        ("vera", lambda t: t["base_model.vera_A"].add_(1), BasisError, "sha256"),
    ],
)
def test_a_tensor_that_does_not_belong(kind, change, error, said, folder_of, small_llama):
    with pytest.raises(error, match=said):
        import_peft(change_weights(folder_of(kind), change), small_llama)


def test_another_basis_than_recorded_is_not_applied(folder_of, small_llama):
    folder = folder_of(save_projection=False)
    assert import_peft(folder, small_llama).layout.basis.seed == 3
    with pytest.raises(BasisError, match="sha256"):
        import_peft(change_config(folder, projection_prng_key=4), small_llama)


def test_a_small_file_cannot_ask_for_a_huge_basis(folder_of, small_llama, monkeypatch):
    folder = folder_of(save_projection=False)
    monkeypatch.setattr("polyvera.store.peft.basis.MAX_DRAWN", 8 * 63)
    with pytest.raises(LayoutError, match="a basis of rank 8 for 32 in, 32 out has more than 504 numbers"):
        import_peft(folder, small_llama)
    stored = change_config(folder_of(overwrite=True), basis_init="orthogonal", in_max=2**20, out_max=2**20)
    assert import_peft(stored, small_llama).layout.basis.in_max == 32  # what is recorded is drawn only within bounds


def test_an_adapter_of_another_model(folder_of, small_bert, built):
    with pytest.raises(LayoutError, match="matches no linear layer of BertForSequenceClassification, which has.*query"):
        import_peft(folder_of("lora"), small_bert)
    with pytest.raises(PolyveraError, match="missing"):
        import_peft(change_config(folder_of("vera"), target_modules=["query"]), small_bert)


def test_a_module_saved_whole_inside_another_has_to_be_the_bases_own(folder_of, small_llama):
    folder, key = folder_of("lora"), "base_model.model.model.embed_tokens.weight"
    change_config(folder, modules_to_save=["embed_tokens"])
    own = small_llama.model.embed_tokens.weight.detach().clone()
    change_weights(folder, lambda t: t.update({key: own}))
    assert import_peft(folder, small_llama).spec.head == ()
    change_weights(folder, lambda t: t[key].add_(1))
    with pytest.raises(FormatError, match=r"embed_tokens.*modules_to_save=\['embed_tokens'\]"):
        import_peft(folder, small_llama)


def test_a_bias_has_to_be_the_bases_own(folder_of, small_llama):
    folder, key = folder_of("lora"), f"{Q}.base_layer.bias"
    own = small_llama.model.layers[0].self_attn.q_proj.bias.detach().clone()
    change_weights(change_config(folder, bias="lora_only"), lambda t: t.update({key: own}))
    import_peft(folder, small_llama)
    change_weights(folder, lambda t: t[key].add_(1))
    with pytest.raises(FormatError, match="bias='lora_only' trains biases"):
        import_peft(folder, small_llama)


@pytest.mark.parametrize(
    "choices",
    [
        {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]},
        {"target_modules": "q_proj"},
        {"target_modules": r"model\.layers\.\d\..*(q|down)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "blocks"},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["proj"]},
    ],
)
def test_targets_mean_what_they_mean_in_peft(choices, small_llama):
    absent = dict.fromkeys(("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"))
    theirs = SimpleNamespace(**absent | {"target_parameters": None} | choices)
    wanted = [n for n in linear_layers(small_llama) if check_target_module_exists(theirs, n)]
    config = PeftConfig(peft_type="LORA", **choices)
    if wanted:
        assert list(sites_of(config, small_llama)) == wanted
    else:
        with pytest.raises(LayoutError, match="matches no linear layer"):
            sites_of(config, small_llama)
