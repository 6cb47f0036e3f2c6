"""Candidate: a point of the search space, as choices of a recipe, and the true bytes of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layout import Layout, Widths, layout_of
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites, linear_layers
from polyvera.data.tables import Table
from polyvera.model.load import Base
from polyvera.store.file.file_bytes import num_file_bytes
from polyvera.train.many_runs import of_method
from polyvera.train.preparation import made_basis, on_made, said, spec_for
from polyvera.train.recipe import Recipe

A_SHA256, A_RATE = "0" * 64, 0.01234
SCORES = {"train_loss": 1.2345678901234567, "eval_loss": 1.2345678901234567, "rounding_loss": 0.012345678901234567}


@dataclass(frozen=True)
class Candidate:
    """A method at one rank on some layers, its numbers or a hash's in one precision.

    sites: layers by name, of those that the search is about. stored: a stored dtype.
    """

    method: str
    rank: int
    sites: tuple[str, ...]
    stored: str
    hash_size: int | None = None

    def choices(self, layers: Sequence[str]) -> dict[str, Any]:
        """Keys of a Recipe. layers: all linear ones of the model."""
        return {
            "method": self.method,
            "rank": self.rank,
            "targets": endings(self.sites, layers),
            "hash_size": self.hash_size,
        }

    @property
    def text(self) -> str:
        """The choices for people."""
        hashed = "" if self.hash_size is None else f", a hash of {self.hash_size:,}"
        return f"{self.method} rank {self.rank} on {len(self.sites)} layers{hashed}, {self.stored}"


def endings(sites: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Names that mean these layers among all: an ending where it stands for a whole kind, else the whole name."""
    kinds: dict[str, list[str]] = {}
    for name in layers:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    found: list[str] = []
    for kind, names in kinds.items():
        own = [name for name in names if name in sites]
        found += [kind] if own == names and len(own) > 1 else own
    return tuple(found)


@dataclass(frozen=True)
class Sizer:
    """What a candidate's file has, as the store writes it: header, head, letters.

    recipe: of the runs. table: their rows.
    """

    recipe: Recipe
    base: Base
    table: Table

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All linear layers of the model."""
        return tuple(linear_layers(self.base.model))

    def choices(self, candidate: Candidate) -> dict[str, Any]:
        """Keys of a Recipe, the made basis that all runs share among them."""
        return {**candidate.choices(self.layers), **of_method(self.recipe, candidate.method, candidate.rank)}

    def num_params(self, candidate: Candidate) -> int:
        """The numbers that it stores, those of a head among them. Raises LayoutError, SpecError."""
        return self._laid_out(candidate)[1].num_params

    def file_bytes(self, candidate: Candidate) -> int:
        """The bytes of its file, of numbers and scores that are not there yet. Raises LayoutError, SpecError."""
        spec, layout = self._laid_out(candidate)
        sha256 = "" if layout.basis is None else layout.basis.sha256 or A_SHA256
        numbers = torch.linspace(-1.0, 1.0, layout.num_params)
        adapter = Adapter(spec, layout, numbers, sha256, base=self._fingerprint, scores=SCORES)
        recipe = self.recipe.replaced(**self.choices(candidate), lr=A_RATE)
        return num_file_bytes(said(recipe, adapter, self.table.kind, self.table.labels), candidate.stored)

    def _laid_out(self, candidate: Candidate) -> tuple[AdapterSpec, Layout]:
        recipe = self.recipe.replaced(**self.choices(candidate))
        spec = on_made(recipe.spec(self.base.head), made_basis(recipe))
        head = {name: tuple(tensor.shape) for name, tensor in head_tensors(self.base.model, spec.head).items()}
        return spec, layout_of(spec, find_sites(self.base.model, spec), head)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.base.model)


def sites_of(recipe: Recipe, base: Base) -> Mapping[str, Widths]:
    """All layers that a search is about: those that the recipe's targets mean and that answers depend on."""
    spec, _ = spec_for(recipe, base)
    return find_sites(base.model, spec)
