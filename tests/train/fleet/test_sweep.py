"""A candidate is the run that its rate alone gives; the choice is bracketed, and the base is as it was before."""

from math import inf
from typing import Any

import pytest
import torch
from tiny_models import counting_rows, make_classifier, make_model, make_tokenizer

from polyvera.adapter.inject import banks_of
from polyvera.data.packed_rows import PackedRows
from polyvera.data.tables import table
from polyvera.model.load import Base
from polyvera.train.fleet.fleet import views_for_gradients
from polyvera.train.fleet.halving import RUNGS, Rung, moved, whole_run_rate
from polyvera.train.fleet.sweep import (
    BEYOND,
    EXTENSIONS,
    FACTORS,
    PARTS,
    RateSearch,
    Sweep,
    SweepRows,
    TriedRate,
    step_of,
    sweep,
)
from polyvera.train.preparation import adapted, encode_tables
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import lr_factor
from polyvera.train.tell import Tell, to_nobody
from polyvera.train.tenants import Tables
from polyvera.train.trainer import train

RATES = (0.01, 0.1, 0.3)


def recipe_of(**choices: Any) -> Recipe:
    own = {"model": "tiny", "data": "x", "rank": 4, "batch_size": 2, "targets": "all-linear", "max_steps": 24}
    return Recipe(**{**own, **choices})


def rows_of(recipe: Recipe, base: Base, rows: list[dict[str, str]], name: str = "") -> SweepRows:
    found = table("x", [(i, row) for i, row in enumerate(rows)], {}, chat=False)
    encoded, _ = encode_tables(recipe, Tables(found, None, None), base)
    packed = PackedRows.of(encoded)
    return SweepRows(name, packed, packed, recipe.max_steps or 0)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vera": ("generation", {}),
    "dora": ("generation", {"method": "dora"}),
    "dvora with a weight decay and a tight clip": (
        "generation",
        {"method": "dvora", "weight_decay": 0.1, "clip": 0.05},
    ),
    "a head, whose rate is its own": ("classes", {"targets": "default"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_candidate_equals_its_run_alone(tmp_path, case: str) -> None:
    kind, choices = CASES[case]
    make = {"generation": make_model, "classes": make_classifier}[kind]
    rows = counting_rows(48) if kind == "generation" else labelled_rows(48)
    path = written(tmp_path / "rows.jsonl", rows)
    recipe = recipe_of(warmup=0.0, schedule="constant", **choices)
    base = Base(make(), make_tokenizer())
    everyone = [rows_of(recipe, base, rows)]
    with adapted(recipe, base, len(RATES)) as bank, views_for_gradients():
        search = RateSearch(recipe, base, bank, everyone, None)
        search.admit(RATES)
        everything = Rung(RUNGS[0].share, len(RATES), len(RATES))
        search.train(everything)
        found = {lr: bank.take(member.slot) for (lr, _), member in search.members.items()}
    for lr in RATES:
        alone = train(
            recipe.replaced(data=path, lr=lr, max_steps=step_of(RUNGS[0], recipe, 24, 1.0)),
            base=Base(make(), make_tokenizer()),
            progress=False,
        )
        assert float((found[lr] - alone.adapter.flat).norm() / alone.adapter.flat.norm()) < 1e-4


def labelled_rows(num: int) -> list[dict[str, str]]:
    return [{"text": f"w{i % 7} w{20 + i % 5}", "label": ("even", "odd")[i % 2]} for i in range(num)]


def written(path, rows: list[dict[str, str]]) -> str:
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(make_model(), make_tokenizer())


def swept(base: Base, names: tuple[str, ...] = ("",), tell: Tell = to_nobody, **choices: Any) -> Sweep:
    recipe = recipe_of(**choices)
    rows = [rows_of(recipe, base, counting_rows(48 + i), n) for i, n in enumerate(names)]
    return sweep(recipe, base, rows, tell=tell)


def test_the_choice_stands_for_the_best_of_the_last_rung(base: Base) -> None:
    told: list[str] = []
    found = swept(base, tell=told.append)
    last = max(one.num_steps for one in found.tried)
    left = [one for one in found.tried if one.num_steps == last]
    assert len(found.tried) >= len(FACTORS)
    assert found.best in {one.lr for one in left}
    assert all(one.loss < inf for one in left)
    assert found.share == 6 / 24
    assert found.lr == whole_run_rate(found.best, moved(lr_factor(recipe_of(), 24), 6, 24))
    assert sorted({one.num_steps for one in found.tried}) == [3, 4, 6]
    rungs = [line for line in told if "is the best" in line]
    assert all(f"after {step} steps" in line for step, line in zip((3, 4, 6), rungs, strict=False))
    assert len(rungs) >= 3 and all(f"{one.lr:g}" in rungs[0] for one in found.tried if one.num_steps == 3)


def test_an_edge_is_extended_until_the_loss_turns(base: Base) -> None:
    found = swept(base, lr=1e-3)
    assert len(FACTORS) < len(found.tried) <= len(FACTORS) + BEYOND * EXTENSIONS
    assert found.best > 1e-3 * max(FACTORS)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1.0: 0.5, 2.0: 0.6, 4.0: 0.9}, [0.5, 0.25]),
        ({1.0: 0.9, 2.0: 0.6, 4.0: 0.5}, [8.0, 16.0]),
        ({1.0: 0.9, 2.0: 0.5, 4.0: 0.6}, []),
        ({1.0: inf, 2.0: inf, 4.0: inf}, []),
    ],
)
def test_rates_beyond_an_edge(base: Base, losses: dict[float, float], expected: list[float]) -> None:
    recipe = recipe_of()
    with adapted(recipe, base, 1) as bank:
        search = RateSearch(recipe, base, bank, [rows_of(recipe, base, counting_rows(48))], None)
        search.tried = {lr: TriedRate(lr, 3, loss) for lr, loss in losses.items()}
        search.members = dict.fromkeys((lr, "") for lr in losses)  # type: ignore[arg-type]
        search.losses = {lr: [loss, loss] for lr, loss in losses.items()}
        assert search.beyond() == expected


def test_the_base_and_the_random_numbers_are_as_before(base: Base) -> None:
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    swept(base)
    assert torch.equal(torch.rand(3), expected)
    assert not banks_of(base.model)
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def test_several_tenants_share_one_choice(base: Base) -> None:
    one, two = swept(base), swept(base, ("a", "b"))
    assert two.num_tenants == 2
    assert one.num_rows < two.num_rows
    assert "on 2 tenants" in two.text


def test_the_line_says_choice_losses_and_cost() -> None:
    tried = (TriedRate(0.01, 3, 0.9), TriedRate(0.02, 9, 0.52), TriedRate(0.04, 9, 0.6))
    text = Sweep(0.01, 0.02, 0.25, tried, 1, 1234, 5.0).text
    assert text == (
        "lr 0.01 by a sweep of 3 rates: 0.02 is the best after 25% of the steps (loss by that of the start, where each "
        "was dropped: 0.01: 0.90, 0.02: 0.52, 0.04: 0.60); 1,234 rows, 5.0 s"
    )
    assert "0.01, the edge of what was tried, is" in Sweep(0.005, 0.01, 0.25, tried, 1, 1234, 5.0).text


@pytest.mark.parametrize(
    ("total", "warmup", "stretch", "expected"),
    [
        (100, 0.06, 1.0, [10, 15, 25]),
        (20, 0.06, 1.0, [2, 3, 5]),
        (100, 0.26, 1.0, [30, 35, 45]),
        (20, 0.06, 2.0, [4, 6, 10]),
        (20, 0.06, 4.0, [8, 12, 20]),
    ],
)
def test_rungs_are_shares_of_the_run(total: int, warmup: float, stretch: float, expected: list[int]) -> None:
    recipe = recipe_of(max_steps=total, warmup=warmup)
    assert [step_of(rung, recipe, total, stretch) for rung in RUNGS] == expected


def test_held_out_rows_are_compared_in_parts(base: Base) -> None:
    recipe = recipe_of()
    rows = rows_of(recipe, base, counting_rows(48)).training
    few = rows_of(recipe, base, counting_rows(3)).training
    for held_out, num in ((rows, PARTS), (few, 3)):
        with adapted(recipe, base, 2) as bank, views_for_gradients():
            search = RateSearch(recipe, base, bank, [SweepRows("", rows, held_out, 24)], None)
            search.admit(RATES[:2])
            search.train(RUNGS[0])
            assert {len(own) for own in search.losses.values()} == {num}
            assert search.tried[RATES[0]].loss == pytest.approx(sum(search.losses[RATES[0]]) / num)
