"""Which layers an adapter is for: by default, by ending, by expression, all; and what matches nothing is told."""

import pytest

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_head, find_sites, layers_behind_body, linear_layers, output_of
from polyvera.errors import TargetError

DEFAULT = {"llama": {"q_proj", "v_proj"}, "gpt2": {"c_attn"}, "bert": {"query", "value"}}
OUTPUT = {"llama": "lm_head", "gpt2": "lm_head", "bert": None}


def endings(sites):
    return {name.rpartition(".")[2] for name in sites}


@pytest.mark.parametrize("kind", DEFAULT)
def test_the_default_is_query_and_value(built, kind):
    assert endings(find_sites(built[kind], AdapterSpec())) == DEFAULT[kind]


@pytest.mark.parametrize("kind", OUTPUT)
def test_all_linear_leaves_out_the_output_and_the_head(built, kind):
    model = built[kind]
    sites = find_sites(model, AdapterSpec(targets="all-linear"))
    assert output_of(model) == OUTPUT[kind] and OUTPUT[kind] not in sites
    behind = layers_behind_body(model)
    assert behind.isdisjoint(sites) and OUTPUT[kind] in (None, *behind)
    assert set(linear_layers(model)) - set(sites) == {n for n in (OUTPUT[kind], *find_head(model)) if n}
    assert list(sites) == [n for n in linear_layers(model) if n in sites], "in the model's order"


def test_the_head_of_a_classifier_is_found(built):
    assert {kind: find_head(model) for kind, model in built.items()} == {
        "llama": (),
        "gpt2": (),
        "bert": ("classifier",),
    }


Q_PROJ = {f"model.layers.{i}.self_attn.q_proj" for i in range(3)}


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        ({"targets": "q_proj"}, Q_PROJ),
        ({"targets": ("self_attn.q_proj", "lm_head")}, Q_PROJ | {"lm_head"}),
        ({"targets": r".*\.1\.self_attn\.[qk]_proj"}, {f"model.layers.1.self_attn.{x}_proj" for x in "qk"}),
        ({"targets": ("q_proj", "k_proj"), "exclude": ("k_proj",)}, Q_PROJ),
        ({"targets": ("2.self_attn.q_proj", "lm_head"), "head": ("lm_head",)}, {"model.layers.2.self_attn.q_proj"}),
    ],
)
def test_targets_are_endings_or_an_expression(small_llama, choices, wanted):
    sites = find_sites(small_llama, AdapterSpec(**choices))
    assert set(sites) == wanted
    assert all(small_llama.get_submodule(n).weight.shape == (out, inner) for n, (inner, out) in sites.items())


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"targets": "q_prj"}, "did you mean 'q_proj'"),
        ({"targets": "proj"}, "proj"),
        ({"targets": r"q_proj|v_proj"}, "fully matches none"),
        ({"targets": r"(q_proj"}, "regular expression"),
        ({"targets": "q_proj", "exclude": ("q_prj",)}, "exclude"),
        ({"targets": "q_proj", "exclude": ("q_proj",)}, "no layer"),
    ],
)
def test_what_matches_nothing_is_told(small_llama, choices, told):
    with pytest.raises(TargetError) as refused:
        find_sites(small_llama, AdapterSpec(**choices))
    assert told in str(refused.value)


def test_adapted_layers_keep_their_names(model):
    before = find_sites(model, AdapterSpec(targets="all-linear"))
    inject(model, AdapterSpec(rank=2))
    assert find_sites(model, AdapterSpec(targets="all-linear")) == before
