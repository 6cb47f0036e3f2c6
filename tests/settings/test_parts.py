from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_settings import Shelf

from polyvera.errors import RecipeError, ServeError
from polyvera.settings.field import MIB
from polyvera.settings.parts import check, model_of, part_of

Parts: Any = model_of(Shelf)


class Shelves(Parts):  # type: ignore[misc]
    what: ClassVar[str] = "shelf"
    refusal: ClassVar[type] = RecipeError


def test_a_models_settings_are_the_described_fields_in_outer_units() -> None:
    assert {*Shelves.settings()} == {"room_mib", "file"} and Shelves().room_mib == 2


def test_the_part_is_made_of_the_settings() -> None:
    assert part_of(Shelves(space=3, file="x"), Shelf, owner="me") == Shelf("me", 3 * MIB, Path("x"))


def test_bounds_hold_for_both() -> None:
    with pytest.raises(RecipeError, match="room_mib=0: must be greater than or equal to 1"):
        Shelves(room_mib=0)
    with pytest.raises(ServeError, match="room=0: must be greater than or equal to 1"):
        check(Shelf("me", 0), ServeError)
    check(Shelf("me", 1), ServeError)
