"""Family: the adapters that a hash of D numbers makes over one row of the table, for every D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS, method_named
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import SpecError
from polyvera.model.load import Base
from polyvera.train.preparation import spec_for
from polyvera.train.recipe import Recipe

SEPARATOR = ":"
FIRST, *_ = METHODS
REFERENCE = FIRST
FAMILIES = (AdapterSpec().method, FIRST)


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

    def choices(self, size: int | None) -> dict[str, Any]:
        """Keys of a Recipe. size: of the hash, None for the letters themselves."""
        return {"method": self.method, "rank": self.rank, "hash_size": size}

    def num_letters(self, recipe: Recipe, base: Base) -> int:
        """How many numbers a hash would stand for on this base."""
        spec, _ = spec_for(recipe.replaced(**self.choices(None)), base)
        layout = layout_of(spec, find_sites(base.model, spec))
        return sum(entry.size for stack in layout.stacks for entry in stack.entries if entry.letter in spec.row.hashed)
