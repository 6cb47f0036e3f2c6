"""make_basis: a shared pair A, B of a kind, for the layers that a recipe adapts.

All kinds have the average size of a kaiming pair, so that a learning rate carries over: the rows of A are of norm √2 in
the mean of squares, and the columns of B of norm √(2 out_max / rank).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import sqrt
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from polyvera.adapter.basis import BASES, Basis, draw_basis, given_basis
from polyvera.adapter.layout import Layout, layout_of
from polyvera.adapter.targets import find_sites
from polyvera.bases.joint_pair import JointPair
from polyvera.bases.layer_sides import LayerSides, gathering, leading, leading_pairs
from polyvera.errors import DataError, RecipeError, SpecError, did_you_mean
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import Watch
from polyvera.train.fleet.journal import FINISHED
from polyvera.train.fleet.one_process import train_here
from polyvera.train.many_runs import UNUSED
from polyvera.train.preparation import base_for, spec_for
from polyvera.train.recipe import Recipe
from polyvera.train.tell import Tell, to_nobody
from polyvera.train.tenants import Tenant, first_table, only_tenant, tenants

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BasisRun:
    """The training that a basis is made of, on a base. tenants: all train at once."""

    recipe: Recipe
    base: Base
    tenants: tuple[Tenant, ...]
    tell: Tell

    @cached_property
    def layout(self) -> Layout:
        """Of the adapters that train."""
        spec, _ = spec_for(self.recipe, self.base)
        return layout_of(spec, find_sites(self.base.model, spec))

    @property
    def rank(self) -> int:
        """Of the basis."""
        assert self.layout.basis is not None
        return self.layout.basis.rank

    def train(self, watch: Watch = lambda fleet: None) -> None:
        """Trains all tenants. Raises DataError where none is trained to its end."""
        result = train_here(self.recipe, self.tenants, base=self.base, watch=watch, tell=self.tell)
        if not result.of(FINISHED):
            raise DataError(f"no tenant could be trained: {result.outcomes[0].problem}")

    def sides(self, watch: Watch = lambda fleet: None) -> list[LayerSides]:
        """Of every adapted layer, over the batches of the training. Raises as train()."""
        widths = {site.name: site.widths for site in self.layout.sites}
        with gathering(self.base.model, widths) as found:
            self.train(watch)
        return list(found.values())


def activation_pair(sides: Sequence[LayerSides], rank: int) -> Pair:
    """Principal components of what layers read, and of the gradients of what they give. Raises DataError."""
    A = leading([own.covariance for own in sides], rank, "the inputs of these layers")
    return A, leading([own.wanted for own in sides], rank, "the gradients of these layers' outputs").T


def gradient_pair(sides: Sequence[LayerSides], rank: int) -> Pair:
    """Singular pairs of the layers' mean gradients. Raises DataError."""
    right, left = leading_pairs(sides, rank)
    return right, left.T


def _fleet(run: BasisRun) -> Pair:
    if len(run.tenants) < 2:
        raise DataError(f"{run.recipe.data} has one tenant, and a pair is learned of how several differ: add tenants")
    joint = JointPair()
    run.train(joint)
    assert joint.pair is not None
    A, B = (t.detach().double().cpu() for t in joint.pair)
    return A, B


def _drawn(init: str, run: BasisRun) -> Pair:
    assert run.layout.basis is not None
    basis = draw_basis(replace(run.layout.basis, init=init))
    return basis.A, basis.B


# One entry a kind: principal components of what the layers read and of the gradients of what they give; singular pairs
# of the mean gradient of their weights; learned with a fleet; or drawn, as it is.
KINDS: Mapping[str, Callable[[BasisRun], Pair]] = MappingProxyType(
    {
        "activations": lambda run: activation_pair(run.sides(), run.rank),
        "gradients": lambda run: gradient_pair(run.sides(), run.rank),
        "fleet": _fleet,
        **{init: partial(_drawn, init) for init in BASES},
    }
)


def make_basis(recipe: Recipe, kind: str, *, base: Base | None = None, tell: Tell = to_nobody) -> Basis:
    """A basis of that kind, for the layers and the rank of a recipe, made of its rows.

    recipe: its training, on one task or on the tenants of a fleet at once, is what the kinds that are not drawn look
    at; the rate is the method's own where none is given. base: a model that is loaded already.

    Raises SpecError for a kind that there is not, RecipeError for settings without use, DataError where the rows give
    too few directions.
    """
    if kind not in KINDS:
        raise SpecError(f"kind={kind!r} must be one of: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    _check(recipe)
    line = _tenants(recipe, tell)
    table = first_table(line, recipe)
    if table is None:
        line[0].tables(recipe)  # raises
        raise DataError(f"{recipe.data} has no tenant that can be read")
    base = base_for(recipe, table, base)
    kept = recipe.given()
    asked = Recipe(**{k: v for k, v in kept.items() if k not in ("name", "store", "adapter_column", "fleet")})
    own = asked.replaced(fleet=True, lr=recipe.learning_rate, slots=len(line))
    run = BasisRun(own, base, tuple(line), tell)
    pair = KINDS[kind](run)
    return given_basis(*(pair if kind in BASES else sized(*pair)))


def about(recipe: Recipe, kind: str) -> dict[str, str]:
    """How a basis was made, in words."""
    said = {"kind": kind, "model": recipe.model, "data": Path(recipe.data).name, "targets": str(recipe.targets)}
    return {**said, "seed": str(recipe.seed), "method": recipe.method}


def sized(A: Tensor, B: Tensor) -> Pair:
    """The pair with the average size of a kaiming pair, fp32."""
    rank, tall = len(A), len(B)
    a, b = (float(torch.linalg.vector_norm(t.double())) for t in (A, B))
    return (A * (sqrt(2.0 * rank) / a)).float(), (B * (sqrt(2.0 * tall) / b)).float()


def _check(recipe: Recipe) -> None:
    given = next((name for name in UNUSED if name in recipe.given()), None)
    if given is not None:
        raise RecipeError(f"{given} has no effect on the making of a basis: leave it out")
    if not recipe.spec().row.shares_basis:
        raise RecipeError(f"method={recipe.method!r} has no pair that all layers share: take one that has")


def _tenants(recipe: Recipe, tell: Tell) -> list[Tenant]:
    is_fleet = recipe.fleet or Path(recipe.data).expanduser().is_dir()
    return tenants(recipe, tell) if is_fleet else [replace(only_tenant(recipe), name="rows")]
