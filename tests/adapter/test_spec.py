"""A spec comes back from its own words, and refuses what cannot be before any work."""

from dataclasses import fields

import pytest

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec, BasisKey
from polyvera.errors import SpecError

SHARED = next(name for name, row in METHODS.items() if row.shares_basis)
OWN = next(name for name, row in METHODS.items() if row.takes_alpha)
CHOICES = [
    {},
    {"rank": 3, "seed": 7, "targets": ("q_proj", "v_proj"), "exclude": ["lm_head"]},
    {"targets": r".*\.(q|v)_proj", "dropout": 0.5, "head": ["classifier"], "magnitude": True},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("choices", CHOICES)
def test_a_spec_comes_back_from_its_words(method, choices):
    spec = AdapterSpec(method, **choices)
    words = spec.to_dict()
    assert words["method"] == method and set(words) <= {"method", *choices}
    assert AdapterSpec.from_dict(words) == spec and hash(AdapterSpec.from_dict(words)) == hash(spec)


def test_patterns_come_back_sorted():
    spec = AdapterSpec(OWN, rank_pattern=(("b", 2), ("a", 3)), alpha_pattern=(("c", 1.5),))
    assert spec.to_dict()["rank_pattern"] == {"a": 3, "b": 2}
    assert (
        AdapterSpec.from_dict(spec.to_dict())
        == spec
        == AdapterSpec(OWN, rank_pattern=(("a", 3), ("b", 2)), alpha_pattern=(("c", 1.5),))
    )


@pytest.mark.parametrize("name", [field.name for field in fields(AdapterSpec)])
def test_a_misspelt_key_is_told_with_its_nearest(name):
    with pytest.raises(SpecError, match=f"did you mean '{name}'"):
        AdapterSpec.from_dict({f"{name}x": 1})


@pytest.mark.parametrize(
    ("method", "choices", "named"),
    [
        ("nothing", {}, "nothing"),
        (SHARED, {"rank": 0}, "rank"),
        (SHARED, {"rank": 2.5}, "rank"),
        (SHARED, {"seed": -1}, "seed"),
        (SHARED, {"seed": 2**32}, "seed"),
        (SHARED, {"dropout": 1.0}, "dropout"),
        (SHARED, {"targets": ()}, "targets"),
        (SHARED, {"alpha": 3}, "alpha"),
        (SHARED, {"alpha_pattern": (("q", 3),)}, "alpha"),
        (SHARED, {"scaling": "alpha/r"}, "scaling"),
        (SHARED, {"rank_pattern": (("q", 3),)}, "rank_pattern"),
        (SHARED, {"init": "kaiming_unifrm"}, "did you mean 'kaiming_uniform'"),
        (SHARED, {"basis_dtype": "int8"}, "basis_dtype"),
        (OWN, {"scaling": "alpha*r"}, "scaling"),
    ],
)
def test_what_cannot_be_is_refused(method, choices, named):
    with pytest.raises(SpecError, match=named):
        AdapterSpec(method, **choices)


def test_ranks_and_scales_are_of_each_layer():
    spec = AdapterSpec(OWN, rank=4, alpha=8, rank_pattern=(("q", 2),), alpha_pattern=(("v", 6),))
    assert [spec.rank_of(site) for site in ("q", "v", "o")] == [2, 4, 4]
    assert [spec.scale_of(site) for site in ("q", "v", "o")] == [(8 / 2, 1.0), (6 / 4, 1.0), (8 / 4, 1.0)]


@pytest.mark.parametrize("method", METHODS)
def test_a_magnitude_is_one_more_trained_letter(method):
    plain, with_m = AdapterSpec(method).row, AdapterSpec(method, magnitude=True).row
    assert set(with_m.trained) == {*plain.trained, "m"}


def test_a_key_counts_both_matrices():
    assert BasisKey("uniform", 0, 4, 10, 6).num_params == 4 * 10 + 6 * 4
