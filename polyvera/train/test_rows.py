"""with_test_rows: tenants that can be scored, each with rows that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from polyvera.data.batching import order
from polyvera.data.row_files import read_rows
from polyvera.errors import DataError
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows, only_tenant, tenants

TEST_SHARE = 0.2  # of the rows, where no test rows are given
SPLIT_SEED = 0  # one split for all runs, whatever their run_seed


def with_test_rows(recipe: Recipe, tell: Callable[[str], None]) -> list[Tenant]:
    """The recipe's tenants (one, named after its file, where it is no fleet), each with test rows.

    Where the recipe gives none, every fifth row or so is held out, the same rows for the same file. Rows that cannot
    be read are that tenant's problem. tell: as tenants() takes it. Raises DataError where there are no tenants.
    """
    everyone = tenants(recipe, tell) if recipe.fleet else [replace(only_tenant(recipe), name=Path(recipe.data).stem)]
    return [tenant if recipe.test is not None or tenant.problem else _split(tenant) for tenant in everyone]


def _split(tenant: Tenant) -> Tenant:
    source = tenant.training
    try:
        rows = list(read_rows(source.name) if source.rows is None else source.rows)
    except DataError as error:
        return replace(tenant, problem=str(error))
    num = round(TEST_SHARE * len(rows))
    if num == 0:
        return replace(tenant, problem=f"{source.name}: {len(rows)} rows are too few to hold some out; give test")
    shuffled = order(len(rows), SPLIT_SEED, 0)
    test, training = (tuple(rows[i] for i in sorted(part)) for part in (shuffled[:num], shuffled[num:]))
    return replace(tenant, training=TenantRows(source.name, training), test=TenantRows(source.name, test))
