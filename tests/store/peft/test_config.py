"""A PEFT config says which row of the table, which scaling, and which layers."""

import json

import pytest
from peft.utils import constants

from polyvera.adapter.method import METHODS
from polyvera.errors import FormatError, SpecError
from polyvera.store.foreign import CONFIG_NAME
from polyvera.store.peft.config import PEFT_METHODS, read_config, row_of
from polyvera.store.peft.family_targets import FAMILY_TARGETS

RANKS = {"LORA": "r", "ADALORA": "init_r", "VERA": "r"}


@pytest.fixture
def config(tmp_path):
    def read(peft_type="LORA", **keys):
        keys = {RANKS.get(peft_type, "r"): 4, "target_modules": ["q_proj"], **keys}
        (tmp_path / CONFIG_NAME).write_text(json.dumps({"peft_type": peft_type, **keys}))
        return read_config(tmp_path / CONFIG_NAME)

    return read


@pytest.mark.parametrize("row", [row for row in METHODS.values() if row.peft_type], ids=lambda row: row.name)
def test_a_row_is_known_by_what_peft_stores_of_it(row):
    found = row_of(PEFT_METHODS[row.peft_type], "m" in row.peft_keys)
    assert found.peft_type == row.peft_type and set(found.trained) == set(row.peft_keys)


def test_a_method_of_other_letters_is_refused(config):
    with pytest.raises(SpecError, match="use_dora"):
        config("VERA", use_dora=True)
    with pytest.raises(SpecError, match="did you mean 'LORA'"):
        config("LORRA")


@pytest.mark.parametrize(("flag", "rule"), [(False, "alpha/r"), (True, "alpha/sqrt(r)")])
def test_a_flag_chooses_the_scaling(config, flag, rule):
    assert config(use_rslora=flag).scaling == rule


@pytest.mark.parametrize(
    ("peft_type", "key", "value"),
    [("LORA", "r", 8), ("LORA", "lora_alpha", 8), ("ADALORA", "init_r", 12), ("VERA", "r", 256)],
)
def test_a_key_that_is_left_out_is_pefts_default(peft_type, key, value, tmp_path):
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"peft_type": peft_type, "target_modules": ["q_proj"]}))
    assert read_config(tmp_path / CONFIG_NAME).required(key) == value
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"peft_type": peft_type, "target_modules": ["q_proj"], key: None}))
    with pytest.raises(FormatError, match=f"{key} is null"):
        read_config(tmp_path / CONFIG_NAME).required(key)


@pytest.mark.parametrize("peft_type", FAMILY_TARGETS)
def test_no_targets_mean_what_they_mean_in_peft(peft_type, config, small_llama):
    theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING")
    ours = {k: v if isinstance(v, str) else list(v) for k, v in FAMILY_TARGETS[peft_type].items()}
    assert ours == theirs
    assert config(peft_type, target_modules=None).on(small_llama).target_modules == ["q_proj", "v_proj"]


def test_a_family_without_a_default_needs_targets(config, small_llama):
    small_llama.config.model_type = "other"
    with pytest.raises(SpecError, match="target_modules is null"):
        config(target_modules=None).on(small_llama)


OFF = {
    "bias": "none",
    "trainable_token_indices": {},
    "target_parameters": [],
    "alora_invocation_tokens": [],
    "use_qalora": False,
    "layer_replication": [],
    "megatron_config": {},
    "ensure_weight_tying": False,
    "use_rslora": None,
    "use_dora": None,
    "modules_to_save": [],
    "exclude_modules": [],
}


@pytest.mark.parametrize("key", OFF)
def test_what_asks_for_nothing_is_no_reason_to_refuse(key, config):
    assert config(**{key: OFF[key]}).scaling == "alpha/r"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task_type": "CHAT"}, "task_type='CHAT'"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
    ],
)
def test_what_peft_refuses_is_refused(keys, said, config):
    with pytest.raises(SpecError, match=said):
        config(**keys)


def test_a_byte_order_mark_is_skipped(tmp_path):
    text = json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]})
    (tmp_path / CONFIG_NAME).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_config(tmp_path / CONFIG_NAME).kind.name == "LORA"
