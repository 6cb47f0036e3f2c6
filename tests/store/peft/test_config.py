"""A PEFT config says which row of the table, which scaling, and which layers."""

import json

import pytest
from peft_oracle import TARGETS

from polyvera.adapter.method import METHODS
from polyvera.errors import FormatError, LayoutError, SpecError
from polyvera.store.peft.config import CONFIG_NAME, PEFT_METHODS, of_pattern, read_config, row_of, sites_of, widest

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


@pytest.mark.parametrize("kind", TARGETS)
def test_sites_end_in_the_targets(config, built, kind):
    sites = sites_of(config(target_modules=TARGETS[kind]), built[kind])
    assert sites and all(name.endswith(tuple(TARGETS[kind])) for name in sites)
    assert widest(sites) == (max(i for i, _ in sites.values()), max(o for _, o in sites.values()))


def test_layers_are_chosen_by_number(config, small_llama):
    chosen = sites_of(config(layers_to_transform=[0, 2]), small_llama)
    assert list(chosen) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)]


def test_the_first_pattern_that_ends_a_name_counts(config):
    patterns = config(rank_pattern={"q_proj": 1, r"layers\.1\..*": 2})
    names = ("layers.1.q_proj", "layers.1.v_proj", "layers.0.v_proj")
    assert [of_pattern(patterns, "rank_pattern", name, 0) for name in names] == [1, 2, 0]
    assert of_pattern(config(), "rank_pattern", "q_proj", 7) == 7


def test_a_key_that_is_missing_is_named(config):
    with pytest.raises(FormatError, match="'init_r'"):
        config("ADALORA", init_r=None).required("init_r")


BAD = "(((([a-z_.0-9]{1,50}){1,50}){1,50}){1,50})[!?]"


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("target_modules", {"target_modules": BAD}),
        ("exclude_modules", {"exclude_modules": BAD}),
        ("layers_pattern", {"layers_pattern": [BAD], "layers_to_transform": [0]}),
        ("modules_to_save", {"modules_to_save": [BAD]}),
    ],
)
def test_an_expression_that_explodes_is_refused_by_its_key(key, keys, config, small_llama):
    with pytest.raises((FormatError, LayoutError), match=key):
        sites_of(config(**keys), small_llama)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_so_is_one_in_a_pattern(key, config):
    with pytest.raises(FormatError, match=key):
        of_pattern(config(**{key: {BAD: 1}}), key, "model.layers.0.self_attn.q_proj" + 40 * "a", 0)
