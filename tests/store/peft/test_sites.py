"""The layers that a config is for, by the names and patterns that PEFT matches."""

import pytest
from peft_oracle import TARGETS

from polyvera.errors import FormatError, LayoutError
from polyvera.store.peft.config import PeftConfig
from polyvera.store.peft.sites import heads_of, of_pattern, sites_of, widest


@pytest.fixture
def config():
    return lambda **keys: PeftConfig(peft_type="LORA", **{"target_modules": ["q_proj"], **keys})


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


def test_a_module_inside_another_is_not_a_head(config, small_llama):
    assert heads_of(config(modules_to_save=["embed_tokens"]), small_llama) == {}
    assert set(heads_of(config(modules_to_save=["lm_head"]), small_llama)) == {"lm_head.weight"}


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
