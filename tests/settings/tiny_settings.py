"""A small settings model with every kind of setting, and a dataclass that is part of another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from polyvera.errors import PolyveraError, RecipeError
from polyvera.settings.field import MIB, Count, Described, Fraction, Positive
from polyvera.settings.model import SettingsModel, SettingsTable, Word


class Oven(SettingsTable):
    degrees: Annotated[Positive, Described("How hot.", "Oven")]
    fan: Annotated[bool, Described("Whether its fan runs.", "Oven")] = False


class Bakery(SettingsModel):
    what: ClassVar[str] = "bakery"
    env_prefix: ClassVar[str] = "BAKERY_"
    refusal: ClassVar[type[PolyveraError]] = RecipeError

    name: Annotated[str, Described("What it is called.", "Shop", ("title",))]
    loaves: Annotated[Count | None, Described("Loaves a day.", "Shop", ("bread_size",))] = None
    flour: Annotated[Literal["rye", "wheat"], Described("What it is made of.", "Dough", env="FLOUR")] = "rye"
    water: Annotated[Fraction, Described("Share of water.", "Dough")] = 0.5
    seeds: Annotated[tuple[str, ...], Described("What is on top.", "Dough")] = ()
    prices: Annotated[dict[str, float], Described("Loaf = price.", "Shop")] = {}  # noqa: RUF012
    holdout: Annotated[str | float | None, Described("A file or a fraction.", "Shop")] = None
    oven: Annotated[Oven | None, Described("The oven.", "Oven")] = None

    def problems(self, word: Word) -> Iterable[str]:
        if self.seeds and self.flour == "wheat":
            yield f"{word('seeds')} needs {word('flour')} rye"


@dataclass(frozen=True, slots=True)
class Shelf:
    owner: str
    room: Annotated[int, Ge(1), Described("Its room, in MiB.", "Shelf", ("space",), name="room_mib", scale=MIB)] = (
        2 * MIB
    )
    file: Annotated[Path | None, Described("Its list.", "Shelf")] = None
