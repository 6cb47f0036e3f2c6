"""Family: the adapters that a hash of D numbers makes over one row of the table, for every D."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from polyvera.adapter.layout import Layout, layout_of
from polyvera.adapter.method import METHODS, method_named
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import RecipeError, SpecError
from polyvera.model.load import Base
from polyvera.train.many_runs import of_method
from polyvera.train.preparation import spec_for
from polyvera.train.recipe import Recipe

SEPARATOR = ":"
FIRST, *_ = METHODS
REFERENCE = FIRST
FAMILIES = (AdapterSpec().method, FIRST)


@dataclass(frozen=True)
class Room:
    """How many numbers a family's adapters can train on one model. layout: of them, without a hash."""

    layout: Layout

    @cached_property
    def hashed(self) -> int:
        """What a hash makes, which is the most numbers that it has."""
        return self._num(self.layout.method.hashed)

    @cached_property
    def most(self) -> int:
        """The largest size, which is what a slot of a bank holds."""
        return self._num(self.layout.method.trained)

    @property
    def kept(self) -> int:
        """What no hash makes, which is trained beside it at every size."""
        return self.most - self.hashed

    def _num(self, letters: tuple[str, ...]) -> int:
        """Numbers of some trained letters, those that layers have in common once."""
        return sum(entry.size for stack in self.layout.stacks for entry in stack.entries if entry.letter in letters)


@dataclass(frozen=True)
class Family:
    """A row of the table at one rank, None for the method's own. Raises SpecError for a method that there is not."""

    method: str
    rank: int | None = None

    def __post_init__(self) -> None:
        if not method_named(self.method).hashed:
            raise SpecError(f"{self.method} has no letters that a hash can make")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The family that 'method' or 'method:rank' names. Raises SpecError."""
        method, _, rank = text.partition(SEPARATOR)
        if rank and not (rank.isdecimal() and int(rank)):
            raise SpecError(f"{text!r}: after the method comes a rank, such as {method}{SEPARATOR}4")
        return cls(method, int(rank) if rank else None)

    @property
    def name(self) -> str:
        """As parse() reads it."""
        return self.method if self.rank is None else f"{self.method}{SEPARATOR}{self.rank}"

    def choices(self, recipe: Recipe, size: int | None, kept: int = 0) -> dict[str, Any]:
        """Keys of a Recipe. size: trained numbers but a head's, None for the letters themselves. kept: of them, what no
        hash makes, as Room has it. recipe: of all runs, as pinned_for_many() gives it.
        """
        return {**of_method(recipe, self.method, self.rank), "hash_size": None if size is None else size - kept}

    def room(self, recipe: Recipe, base: Base) -> Room:
        """How many numbers it can train on this base. Raises SpecError, TargetError or LayoutError."""
        spec, _ = spec_for(recipe.replaced(**self.choices(recipe, None)), base)
        return Room(layout_of(spec, find_sites(base.model, spec)))

    def check_sizes(self, sizes: tuple[int, ...], room: Room) -> None:
        """Raises RecipeError for a size that is none of this family's, LayoutError where it has too many letters."""
        replace(room.layout, hash_size=room.hashed).check_hash()
        for size in sizes:
            if not room.kept < size <= room.most:
                beside = f", of which {room.kept:,} are trained beside the hash at every size" if room.kept else ""
                raise RecipeError(
                    f"size={size:,}: {self.name} can train from {room.kept + 1:,} to {room.most:,} numbers "
                    f"here{beside}; leave the size out, or measure the family alone"
                )
