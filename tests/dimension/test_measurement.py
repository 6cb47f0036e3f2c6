"""A measurement trains each point once, equals runs made by hand, goes on where it was cut, and takes whole fleets."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import counting_rows

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import METHODS, OWN_WIDTH, Method
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.dimension.crossing import crossing
from polyvera.dimension.family import Family
from polyvera.dimension.measurement import Measurement, measure
from polyvera.dimension.point_file import Point
from polyvera.errors import DataError, RecipeError
from polyvera.model.config import set_labels
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

FAMILIES = (Family("vera", 4), Family("lora", 2))
CHOICES = {"model": "tiny", "targets": "all-linear", "max_steps": 4, "batch_size": 4, "lr": 0.05}


def measurement(data: str, sizes: tuple[int, ...] = (8, 32), **choices: object) -> Measurement:
    own = {"families": FAMILIES, "reference": Family("lora", 2), "sizes": sizes, "num_seeds": 2, "refinements": 0}
    recipe = {name: choices.pop(name) for name in list(choices) if name in Recipe.settings()}
    return Measurement(Recipe(**{**CHOICES, "data": data, **recipe}), **{**own, **choices})


def test_a_point_is_the_run_that_a_recipe_gives(base: Base, counting: str, jsonl: Callable[..., str]) -> None:
    test = jsonl(counting_rows(6), "test.jsonl")
    found = measure(measurement(counting, (8,), test=test), base=base)
    by_hand = Recipe(**CHOICES, data=counting, test=test, method="vera", rank=4, hash_size=8, seed=1, run_seed=1)
    alone = train(by_hand, base=base, progress=False)
    [curve] = [c for c in found.curves if c.family == "vera:4"]
    assert curve.scores[8][1] == pytest.approx(alone.scores[found.metric["counting"]], abs=1e-6)
    assert curve.crossing == crossing(curve.scores, found.reference["counting"], 0.9)


@pytest.mark.parametrize("row", [row for row in METHODS.values() if row.rank == OWN_WIDTH], ids=lambda row: row.name)
def test_a_size_counts_what_no_hash_makes(base: Base, counting: str, jsonl: Callable[..., str], row: Method) -> None:
    test, family = jsonl(counting_rows(6), "test.jsonl"), Family(row.name)
    asked = measurement(counting, (32,), test=test, families=(family,), num_seeds=1)
    found = measure(asked, base=base)
    kept = family.room(asked.recipe, base).kept
    assert kept == (len(find_sites(base.model, AdapterSpec(targets="all-linear"))) if "d" in row.trained else 0)
    alone = train(
        Recipe(**CHOICES, data=counting, test=test, method=row.name, hash_size=32 - kept), base=base, progress=False
    )
    assert alone.adapter is not None and alone.adapter.num_params == 32
    assert found.curves[0].scores[32] == (pytest.approx(alone.scores[found.metric["counting"]], abs=1e-6),)


def test_sizes_that_a_family_has_not_are_refused_before_anything_is_trained(base: Base, counting: str) -> None:
    for row in METHODS.values():
        families = (Family(row.name, 2),)
        for size in (10**6, *([1] if row.hashed != row.trained else [])):
            with pytest.raises(RecipeError, match=f"size={size:,}: {row.name}:2 can train from"):
                measure(measurement(counting, (size,), families=families), base=base, watch=lambda points: 1 / 0)


def test_families_that_share_a_basis_have_the_made_one(base: Base, counting: str, tmp_path: Path) -> None:
    wide = layout_of(AdapterSpec(), find_sites(base.model, AdapterSpec(targets="all-linear"))).basis
    assert wide is not None
    registry, made = Registry(tmp_path / "shop"), draw_basis(replace(wide, init="orthogonal", rank=4))
    sha256 = registry.bases.put(made, "pca")
    own = {"basis": "pca", "store": str(tmp_path / "shop"), "num_seeds": 1}
    families = (Family("vera"), Family("lora", 2))
    found = measure(measurement(counting, (8,), families=families, **own), tmp_path / "out", base=base)
    alike = {"families": FAMILIES[:1], "reference": FAMILIES[0], "init": "orthogonal"}
    drawn = measure(measurement(counting, (8,), num_seeds=1, **alike), base=base)
    plain = measure(measurement(counting, (8,), families=FAMILIES[1:], num_seeds=1), base=base)
    assert [curve.scores[8] for curve in found.curves] == [one.curves[0].scores[8] for one in (drawn, plain)]
    assert sha256 in (tmp_path / "out" / "measurement.json").read_text()
    with pytest.raises(RecipeError, match="has rank 4, not 8"):
        measure(measurement(counting, (8,), families=(Family("vera", 8),), **own), base=base)
    with pytest.raises(RecipeError, match="none of lora, lora shares one"):
        measurement(counting, families=(Family("lora"),), **own)


def test_a_measurement_goes_on_where_it_was(base: Base, counting: str, tmp_path: Path) -> None:
    made: list[Sequence[Point]] = []

    def cut(points: Sequence[Point]) -> None:
        made.append(points)
        if len(made) == 4:
            raise KeyboardInterrupt

    asked, folder = measurement(counting), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        measure(asked, folder, base=base, watch=cut)
    again: list[Sequence[Point]] = []
    found = measure(asked, folder, base=base, watch=again.append)
    runs = [(p.family, p.size, p.seed) for points in (*made, *again) for p in points]
    assert len(runs) == len(set(runs)) == 2 + 2 * 2 * 2
    assert found.curves == measure(asked, base=base).curves
    with pytest.raises(RecipeError, match="another measurement"):
        measure(measurement(counting, max_steps=5), folder, base=base)


def test_more_seeds_and_sizes_are_added_to_what_is_there(base: Base, counting: str, tmp_path: Path) -> None:
    measure(measurement(counting, (8,)), tmp_path / "out", base=base)
    more: list[Sequence[Point]] = []
    measure(measurement(counting, (8, 16), num_seeds=3), tmp_path / "out", base=base, watch=more.append)
    assert {(p.size, p.seed) for points in more for p in points} == {(None, 2), (8, 2), (16, 0), (16, 1), (16, 2)}


def test_sizes_grow_until_the_line_is_reached_and_are_refined(base: Base, counting: str) -> None:
    found = measure(measurement(counting, (), share=0.01, refinements=1), base=base)
    for curve in found.curves:
        assert sorted(curve.scores)[:3] == [0, *sorted(curve.scores)[1:3]]
        assert 2 <= len(curve.scores) - 1 <= 5


def test_a_fleet_gives_a_curve_for_each_tenant(base: Base, tmp_path: Path, jsonl: Callable[..., str]) -> None:
    (tmp_path / "tenants").mkdir()
    for name in ("ann", "bob"):
        jsonl(counting_rows(20), f"tenants/{name}.jsonl")
    (tmp_path / "tenants" / "cy.jsonl").write_text("no rows\n")
    found = measure(measurement(str(tmp_path / "tenants")), base=base)
    assert sorted((c.tenant, c.family) for c in found.curves) == [
        (tenant, family.name) for tenant in ("ann", "bob") for family in sorted(FAMILIES, key=lambda f: f.name)
    ]
    assert all(len(scores) == 2 for c in found.curves for size, scores in c.scores.items() if size)
    assert "cy" in found.problems


def test_where_a_head_could_answer_it_is_measured_alone(classifier: Base, classes: str) -> None:
    found = measure(measurement(classes, (8,), num_seeds=1), base=classifier)
    assert {p.family for p in found.points if p.size == 0} == {"nothing"}
    assert all(0 in curve.scores for curve in found.curves)


def test_a_frozen_head_stays(classifier: Base, jsonl: Callable[..., str]) -> None:
    data = jsonl([{"text": f"w{i % 7}", "label": ("w3", "w5")[i % 2]} for i in range(24)], "words.jsonl")
    set_labels(classifier.model.config, ("w3", "w5"))
    found = measure(measurement(data, (8,), num_seeds=1, frozen_head=True), base=classifier)
    assert len(found.curves) == 2 and found.metric == {"words": "accuracy"}
    head = classifier.model.get_submodule(classifier.head[0]).weight.clone()
    again = measure(measurement(data, (8,), num_seeds=1, frozen_head=True), base=classifier)
    assert torch.equal(head, classifier.model.get_submodule(classifier.head[0]).weight)
    assert again.curves == found.curves


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"share": 0.0}, "share"),
        ({"families": ()}, "family"),
        ({"rank": 4}, "rank has no effect"),
        ({"sizes": (0,)}, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        measurement("x", **change)


def test_no_tenant_is_an_error(base: Base, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("no rows\n")
    with pytest.raises(DataError, match="row 1: not valid JSON"):
        measure(measurement(str(tmp_path / "rows.jsonl")), base=base)
