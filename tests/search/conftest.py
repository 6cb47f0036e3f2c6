import pytest

from polyvera.adapter.targets import ALL_LINEAR
from polyvera.data.tables import read
from polyvera.model.load import Base
from polyvera.search.candidate import Sizer
from polyvera.train.recipe import Recipe


@pytest.fixture
def sizer(base: Base, counting: str) -> Sizer:
    recipe = Recipe(model="tiny", data=counting, targets=ALL_LINEAR, validation=0.25)
    return Sizer(recipe, base, read(counting))
