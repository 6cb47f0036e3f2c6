"""Families are rows of the table; how many numbers a hash stands for is what the layout holds."""

import pytest

from polyvera.adapter.inject import inject
from polyvera.adapter.method import METHODS
from polyvera.dimension.family import FAMILIES, REFERENCE, Family
from polyvera.errors import SpecError
from polyvera.model.load import Base
from polyvera.train.preparation import spec_for
from polyvera.train.recipe import Recipe

RECIPE = Recipe(model="tiny", data="x", targets="all-linear")


@pytest.mark.parametrize("text", [*METHODS, f"{REFERENCE}:4"])
def test_a_family_is_named_as_it_is_read(text: str) -> None:
    assert Family.parse(text).name == text


@pytest.mark.parametrize(("text", "words"), [("lorra", "did you mean 'lora'"), ("lora:x", "rank"), ("lora:0", "rank")])
def test_what_is_no_family_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Family.parse(text)


@pytest.mark.parametrize("method", METHODS)
def test_a_hash_of_all_letters_is_the_largest(base: Base, method: str) -> None:
    family = Family(method, 2)
    most = family.num_letters(RECIPE, base)
    kept = [x for x in METHODS[method].trained if x not in METHODS[method].hashed]
    spec, _ = spec_for(RECIPE.replaced(**family.choices(most)), base)
    bank = inject(base.model, spec, 1)
    assert sum(e.letter in kept for s in bank.layout.stacks for e in s.entries) == len(kept) * len(bank.layout.sites)
    assert most == bank.layout.num_params - sum(
        e.size for s in bank.layout.stacks for e in s.entries if e.letter in kept
    )


def test_families_by_default_differ() -> None:
    assert len(set(FAMILIES)) == len(FAMILIES) == 2
