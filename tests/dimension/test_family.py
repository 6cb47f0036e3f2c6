"""Families are rows of the table; how many numbers a hash stands for is what the layout holds."""

import pytest

from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS
from polyvera.adapter.targets import find_sites
from polyvera.dimension.family import FAMILIES, REFERENCE, Family
from polyvera.errors import RecipeError, SpecError
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
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_size_counts_all_that_is_trained(base: Base, method: str, share: float) -> None:
    family = Family(method, 2)
    room = family.room(RECIPE, base)
    size = room.kept + 1 + round(share * (room.hashed - 1))
    spec, _ = spec_for(RECIPE.replaced(**family.choices(RECIPE, size, room.kept)), base)
    layout = layout_of(spec, find_sites(base.model, spec))
    assert layout.num_params == size and layout.expanded.num_params == room.most
    family.check_sizes((size,), room)
    for wrong in (room.kept, room.most + 1):
        with pytest.raises(RecipeError, match=f"from {room.kept + 1:,} to {room.most:,} numbers"):
            family.check_sizes((wrong,), room)


def test_families_by_default_differ() -> None:
    assert len(set(FAMILIES)) == len(FAMILIES) == 2
