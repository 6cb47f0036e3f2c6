"""A fleet in this process: who trains, who is skipped, and what all begin from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from moe_models import make_moe
from tiny_fleet import SETTINGS, solo
from tiny_models import counting_rows, make_model, make_tokenizer

from polyvera.adapter.adapter import Adapter
from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.train.fleet.journal import FINISHED, SKIPPED
from polyvera.train.fleet.one_process import train_here
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows

MORE = {"a": {"id": 1}, "b": {"id": 2}, "c": {"id": 3, "source": "x"}, "d": {}}
ROWS = TenantRows("a", tuple(enumerate(counting_rows(6), 1)))


def base() -> Base:
    return Base(make_model(), make_tokenizer())


def test_tenants_whose_rows_are_bad_are_skipped_though_nobody_is_left() -> None:
    recipe = Recipe(**SETTINGS, data="memory", fleet=True)
    bad = Tenant("bad", TenantRows("bad", ((1, {"nothing": "here"}),)))
    alone = train_here(recipe, [bad], base=base())
    assert [outcome.status for outcome in alone.outcomes] == [SKIPPED] and not alone.traffic.rounds
    both = train_here(recipe, [bad, Tenant("a", ROWS)], base=base())
    assert {o.name: o.status for o in both.outcomes} == {"bad": SKIPPED, "a": FINISHED}
    assert both.of(FINISHED)[0].adapter is not None and both.traffic.rounds == SETTINGS["max_steps"]
    assert train_here(recipe, [], base=base()).outcomes == ()


def test_where_all_begin_is_asked_once_and_kept(counting: str, tmp_path: Path) -> None:
    first = solo(Path(counting), max_steps=1).adapter
    recipe = Recipe(**{**SETTINGS, "max_steps": 1}, data="memory", fleet=True, output=str(tmp_path / "run"))
    asked: list[int] = []

    def start(found: Adapter | None = first) -> Adapter | None:
        asked.append(1)
        return found

    never: Callable[[], Adapter | None] = lambda: asked.append(2)  # type: ignore[func-returns-value]  # noqa: E731
    train_here(recipe, [Tenant("a", ROWS)], base=base(), start=start)
    again = train_here(recipe, [Tenant("a", ROWS), Tenant("b", ROWS)], base=base(), start=never, resume=True)
    assert asked == [1] and len(again.of(FINISHED)) == 2


def test_a_router_whose_loss_is_a_whole_batchs_is_refused() -> None:
    recipe = Recipe(**SETTINGS, data="memory", fleet=True)
    mixture = replace(base(), model=make_moe("mixtral"))
    mixture.model.config.output_router_logits = True
    with pytest.raises(RecipeError, match=r"set output_router_logits to false there, or train each tenant alone"):
        train_here(recipe, [Tenant("a", ROWS)], base=mixture)
    mixture.model.config.output_router_logits = False
    assert train_here(recipe, [Tenant("a", ROWS)], base=mixture).of(FINISHED)


def test_columns_that_are_not_read_are_told_once() -> None:
    recipe, told = Recipe(**SETTINGS, data="memory", fleet=True), list[str]()
    rows = {name: tuple(enumerate([{**r, **more} for r in counting_rows(6)], 1)) for name, more in MORE.items()}
    line = [Tenant(name, TenantRows(name, own)) for name, own in rows.items()]
    train_here(recipe, line, base=base(), tell=told.append)
    assert [text for text in told if "not read" in text] == [
        "a: columns not read: id (6 rows)",
        "c: columns not read: id (6 rows), source (6 rows)",
    ]
