"""warm_start: the adapter that a run begins from, one of the store or the mean of many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import agrees, fingerprint
from polyvera.adapter.layout import layout_of
from polyvera.errors import NotFoundError, RecipeError
from polyvera.model.unread import check_read
from polyvera.store.registry import Registry
from polyvera.train.preparation import made_basis, on_made
from polyvera.train.recipe import Recipe

MEAN = "mean"


def warm_start(recipe: Recipe, registry: Registry) -> Adapter | None:
    """What recipe.init_from names: an adapter of the registry, or the mean of the latest versions that fit the recipe.

    None where it names nothing. Raises NotFoundError, FormatError, SpecError as check_read(), or RecipeError where no
    adapter fits.
    """
    if recipe.init_from is None:
        return None
    if recipe.init_from != MEAN:
        start = registry.get(recipe.init_from)
        check_read(start, recipe.init_from)
        return _alike(recipe, start)
    every = [registry.get(ref) for ref in registry.list(latest=True, missing_ok=False)]
    wanted = on_made(recipe.spec(every[0].spec.head if every else ()), made_basis(recipe))
    alike = [adapter for adapter in every if _fits(adapter, wanted.to_dict())]
    if not alike:
        raise RecipeError(
            f"init_from='mean': none of the {len(every)} adapters in {registry.url} is {recipe.method} of this "
            "recipe's rank, targets and seed, so there is nothing to take the mean of"
        )
    return mean(alike)


def check_begin(start: Adapter | None, model: nn.Module) -> None:
    """Raises RecipeError for an adapter to begin from that was trained on another base model."""
    here = "" if start is None else fingerprint(model)
    if start is not None and not agrees(start.base, here):
        raise RecipeError(
            f"the adapter to begin from was trained on the base model {start.base}, and this is {here}: leave it out, "
            "or train on that base"
        )


def _alike(recipe: Recipe, adapter: Adapter) -> Adapter:
    """The adapter itself. Raises RecipeError for one of another method or rank than the recipe's."""
    (method, rank), asked = ((spec.method, spec.common_rank) for spec in (adapter.spec, recipe.spec()))
    if (method, rank) != asked:
        raise RecipeError(
            f"init_from={recipe.init_from!r} is {method} of rank {rank}, and this run trains {asked[0]} of "
            f"rank {asked[1]}: give method={method!r} and rank={rank}, or begin from another"
        )
    return adapter


def mean(adapters: Iterable[Adapter]) -> Adapter:
    """The adapter whose numbers are the mean of theirs, all of one layout. Raises NotFoundError, RecipeError."""
    every = list(adapters)
    if not every:
        raise NotFoundError("the mean of no adapters: give at least one")
    first = every[0]
    other = next((a for a in every if a.layout.key() != first.layout.key() or a.base != first.base), None)
    if other is not None:
        raise RecipeError(f"adapters that differ in layout or base have no mean: {first.spec} and {other.spec}")
    return replace(first, flat=torch.stack([adapter.flat for adapter in every]).mean(0), scores={}, created="")


def _fits(adapter: Adapter, wanted: dict[str, object]) -> bool:
    shapes = {site.name: site.widths for site in adapter.layout.sites}
    same = adapter.spec.to_dict() == wanted
    return same and layout_of(adapter.spec, shapes, dict(adapter.layout.head)).key() == adapter.layout.key()
