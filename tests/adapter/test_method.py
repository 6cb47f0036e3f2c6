import pytest

from polyvera.adapter.method import (
    IDENTITY,
    LETTERS,
    METHODS,
    OWN_BASES,
    OWN_WIDTH,
    SCALINGS,
    factor_shape,
    method_named,
)
from polyvera.adapter.spec import BASIS_INITS, AdapterSpec
from polyvera.errors import SpecError


@pytest.mark.parametrize("name", METHODS)
def test_a_row_trains_something_and_knows_all_its_letters(name: str) -> None:
    row = METHODS[name]
    assert row.name == name and set(row.factors) <= set(LETTERS) and {"A", "B"} <= set(row.factors)
    assert row.trained and all(row.factors[letter].trained for letter in row.trained)
    assert not any(row.factors[letter].shared for letter in row.trained)
    assert row.scaling in SCALINGS and (row.scaling != "none") == ("b" in row.factors and "b" not in row.trained)


@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_pair_is_of_any_basis_and_of_its_own_by_default(name: str) -> None:
    row = METHODS[name]
    is_frozen = not {"A", "B"} & set(row.trained)
    assert row.on_basis(row.init) is row and (is_frozen or row.init is None)
    for init in BASIS_INITS if row.init is not None else ():
        other = AdapterSpec(name, init=init).row
        assert other.trained == row.trained and other.shares_basis == (init not in OWN_BASES)
        assert other.init == (init if init in OWN_BASES else "kaiming_uniform")
        assert other.made == (("A", "B") if init in OWN_BASES else ())


@pytest.mark.parametrize("name", METHODS)
def test_a_single_number_is_d_beside_a_trained_A(name: str) -> None:
    row = METHODS[name]
    single = [letter for letter, factor in row.factors.items() if factor.single]
    assert single == [] or (single == ["d"] and "A" in row.trained and "d" in row.trained and not row.shrinks)
    assert [row.shape(x, 3, 5, 7) for x in row.factors] == [
        (1,) if x in single else factor_shape(x, 3, 5, 7) for x in row.factors
    ]
    assert all(row.shape(x, 3, 5, 7, 2) == (2, 1) for x in single)


@pytest.mark.parametrize("name", METHODS)
def test_a_rank_is_within_the_outputs_where_B_is_the_identity(name: str) -> None:
    row = METHODS[name]
    is_wide = row.factors["B"].init == IDENTITY
    assert (row.rank == OWN_WIDTH) == is_wide
    assert [row.rank_within(rank, 7) for rank in (4, 9)] == [4, 7 if is_wide else 9]
    assert not is_wide or row.rank_within(OWN_WIDTH, 7) == 7


@pytest.mark.parametrize("name", METHODS)
def test_a_core_stands_between_frozen_matrices(name: str) -> None:
    assert "C" not in METHODS[name].factors or not {"A", "B"} & set(METHODS[name].trained)


@pytest.mark.parametrize("name", METHODS)
def test_a_magnitude_fits_any_row(name: str) -> None:
    row = METHODS[name].with_magnitude()
    assert "m" in row.trained and row.with_magnitude() == row
    assert AdapterSpec(name, magnitude=True).row.trained == row.trained


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"'verra' must be one of: lora.*did you mean 'vera'\?"):
        method_named("verra")


def test_shapes_of_the_letters() -> None:
    assert [factor_shape(k, 3, 5, 7) for k in LETTERS] == [(3, 5), (7, 3), (3, 3), (3,), (7,), (7,)]


@pytest.mark.parametrize(
    "choices, said",
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.5}, "rank=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": ()}, "targets is empty"),
        ({"alpha": 16}, "alpha=16 is not used by vera"),
        ({"init": "kaiming"}, "did you mean 'kaiming_"),
        ({"basis_dtype": "int8"}, "basis_dtype='int8'"),
        ({"rank_pattern": (("a", 3),)}, "rank_pattern is not used by vera"),
        ({"scaling": "alpha/r"}, "vera takes one of: none"),
        ({"method": "lora", "scaling": "beta"}, "lora takes one of: none, alpha/r"),
        ({"method": "lora", "d_init": 0.5}, "d_init=0.5 is not used by lora"),
        ({"method": "adalora", "d_init": 0.5}, "d_init=0.5 is not used by adalora"),
        ({"method": "lora-fa", "in_max": 99}, "in_max=99 is not used by lora-fa"),
        ({"method": "dora", "out_max": 99}, "out_max=99 is not used by dora"),
        ({"method": "lora", "init": "orthogonal"}, "init='orthogonal' is not used by lora"),
        ({"method": "lora", "basis_dtype": "bfloat16"}, "basis_dtype='bfloat16' is not used by lora"),
    ],
)
def test_an_impossible_choice_is_refused(choices: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        AdapterSpec(**{"method": "vera", **choices})


@pytest.mark.parametrize("name", METHODS)
def test_a_spec_survives_its_plain_form(name: str) -> None:
    spec = AdapterSpec(name, rank=4, targets=("q", "v"), head=("score",), seed=7)
    assert AdapterSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(SpecError, match="did you mean 'targets'"):
        AdapterSpec.from_dict({"target": "q"})


def test_scales_follow_their_rules() -> None:
    assert AdapterSpec("lora", rank=4, alpha=8).scale_of("x") == (2.0, 1.0)
    assert AdapterSpec("lora", rank=4, alpha=8, scaling="alpha/sqrt(r)").scale_of("x") == (4.0, 1.0)
    pattern = AdapterSpec("lora", rank=4, alpha=8, rank_pattern=(("x", 2),), alpha_pattern=(("y", 4),))
    assert (pattern.scale_of("x"), pattern.scale_of("y")) == ((4.0, 1.0), (1.0, 1.0))
    assert AdapterSpec("adalora", rank=4, alpha=8).scale_of("x") == (8.0, 4 + 1e-5)
