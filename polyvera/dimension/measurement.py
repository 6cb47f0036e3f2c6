"""measure: the score of a task, or of every task of a fleet, at growing numbers of trained numbers, by family.

A family at one size and seed is one bank: all tenants of a fleet train in it together, each at several learning rates,
which are slots of it. Sizes grow by GROWTH until two of them in a row reach the line;
then points are added where the curve crosses it. Li 2018 defined the intrinsic dimension so, on all weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from polyvera.adapter.method import method_named
from polyvera.compare.baseline import BASELINES, HEAD
from polyvera.dimension.crossing import Crossing, crossing
from polyvera.dimension.family import FAMILIES, REFERENCE, Family, Room
from polyvera.dimension.point_file import Point, PointFile
from polyvera.dimension.rate_window import RateWindow
from polyvera.errors import DataError, RecipeError, message_of
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.load import Base
from polyvera.plan import slots_within
from polyvera.train.fleet.fleet import SLOTS
from polyvera.train.many_runs import for_many_runs
from polyvera.train.preparation import base_for, pinned_for_many
from polyvera.train.recipe import Recipe
from polyvera.train.tell import Tell, to_nobody
from polyvera.train.tenants import first_problem, first_table
from polyvera.train.test_rows import with_test_rows

SMALLEST_SIZE, GROWTH = 4, 4
FROZEN_HEAD = ("labels",)
NEAREST = 1.2  # sizes whose ratio is less are not told apart
BANK_BYTES = 2**31  # of candidates that train at a time, with gradients and moments
NOTHING = "nothing"  # the family of no adapter

Watch = Callable[[Sequence[Point]], None]


@dataclass(frozen=True)
class Measurement:
    """What is measured. Raises RecipeError for what a measurement cannot use.

    recipe: the rows and the training; a folder of tenants is a fleet, as with fleet=True. share: of the reference's
    score that is to be reached. reference: trained without a hash. sizes: trained numbers but a head's, () for those
    that the scores ask for. refinements: how many sizes are added where a family's curve crosses the line.
    """

    recipe: Recipe
    share: float = 0.9
    families: tuple[Family, ...] = tuple(map(Family, FAMILIES))
    reference: Family = field(default=Family(REFERENCE))
    sizes: tuple[int, ...] = ()
    num_seeds: int = 3
    refinements: int = 2
    frozen_head: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError(f"share={self.share} must be over 0 and at most 1")
        if not self.families or self.num_seeds < 1 or any(size < 1 for size in self.sizes):
            raise RecipeError("a measurement needs a family, a seed, and sizes of at least 1")
        object.__setattr__(self, "recipe", for_many_runs(self.recipe, "a measurement"))
        methods = [one.method for one in (self.reference, *self.families)]
        if self.recipe.basis is not None and not any(method_named(one).shares_basis for one in methods):
            raise RecipeError(f"basis={self.recipe.basis!r}: none of {', '.join(methods)} shares one: leave it out")

    def subject(self, recipe: Recipe) -> dict[str, Any]:
        """What two runs have in common where the second goes on with the first: all but what may grow.

        recipe: as pinned_for_many() gives it.
        """
        given = recipe.model_dump(mode="json", include=recipe.model_fields_set)
        return {"recipe": given, "reference": asdict(self.reference), "frozen_head": self.frozen_head}


@dataclass(frozen=True)
class Curve:
    """One tenant's scores with one family: of each seed by size, with the size at which they cross the line."""

    tenant: str
    family: str
    scores: dict[int, tuple[float, ...]]
    crossing: Crossing


@dataclass(frozen=True)
class Dimensions:
    """What a measurement found.

    reference: the scores of each seed, by tenant. metric: what the scores are, by tenant. points: every one.
    problems: why a tenant has no curve, by tenant.
    """

    measurement: Measurement
    curves: tuple[Curve, ...]
    reference: dict[str, tuple[float, ...]]
    metric: dict[str, str]
    points: tuple[Point, ...]
    problems: dict[str, str]


def measure(
    measurement: Measurement,
    folder: Path | None = None,
    *,
    base: Base | None = None,
    watch: Watch = lambda points: None,
    tell: Tell = to_nobody,
) -> Dimensions:
    """Trains every point that is not in the folder yet.

    base: a model that is loaded already; bare again afterwards. watch: called with the points of each run that was
    made. tell: called with each line that a run says of itself. Raises DataError where no tenant can be trained,
    RecipeError, TargetError or another PolyveraError.
    """
    with pinned_for_many(measurement.recipe) as recipe:
        runs = PointRuns(measurement, recipe, PointFile(folder, measurement.subject(recipe)), base, watch, tell)
        runs.check()
        runs.reference()
        for family in measurement.families:
            runs.grow(family)
            runs.refine(family)
        return runs.found()


class PointRuns:
    """The runs of a measurement, one after the other. recipe: the measurement's, as pinned_for_many() gives it."""

    def __init__(
        self,
        measurement: Measurement,
        recipe: Recipe,
        file: PointFile,
        base: Base | None,
        watch: Watch,
        tell: Tell,
    ) -> None:
        is_fleet = recipe.fleet or Path(recipe.data).expanduser().is_dir()
        self.of, self.file, self.base, self.watch, self.tell = measurement, file, base, watch, tell
        self.everyone = with_test_rows(recipe.replaced(fleet=is_fleet), tell)
        self.recipe = recipe.replaced(fleet=True, **({"head": FROZEN_HEAD} if measurement.frozen_head else {}))
        self.sizes: dict[str, list[int]] = {}
        self._rooms: dict[Family, Room] = {}
        self._is_ready = False

    def check(self) -> None:
        """Raises RecipeError, LayoutError for what a family can't train, before anything is trained."""
        for family in self.of.families:
            family.check_sizes(self.of.sizes, self._room(family))

    @property
    def seeds(self) -> range:
        """Of the hash, the basis and the order of the rows."""
        return range(self.of.num_seeds)

    def reference(self) -> None:
        """Trains the reference, and the head alone where there is one. Raises DataError where no tenant is left."""
        name = self.of.reference.name
        self._points(name, None)
        if not self.tenants:
            problem = next((p.problem for p in self._points(name, None)), "no tenant could be trained")
            raise DataError(problem)
        if any(point.base is None for point in self._points(name, None) if not point.problem):
            self._points(NOTHING, 0)

    def grow(self, family: Family) -> None:
        """Growing sizes until two in a row reach the line, or those that were asked for."""
        reached = 0
        for size in self.of.sizes or self._sizes(family):
            self._add(family, size)
            reached = reached + 1 if self._reach(family, size) else 0
            if reached == 2 and not self.of.sizes:
                return

    def refine(self, family: Family) -> None:
        """Adds sizes where the curve of all tenants crosses the line."""
        for _ in range(self.of.refinements):
            size = self._between(family)
            if size is None:
                return
            self._add(family, size)

    def found(self) -> Dimensions:
        """The curves of all that was trained."""
        reference = {tenant: self._scores(self.of.reference.name, None, tenant) for tenant in self.tenants}
        curves = [
            Curve(tenant, family.name, own, crossing(own, reference[tenant], self.of.share))
            for family in self.of.families
            for tenant in self.tenants
            for own in [self._curve(family, tenant)]
        ]
        points = [point for run in self.file.points.values() for point in run]
        metric = {point.tenant: point.metric for point in points if point.metric}
        problems = {p.tenant: p.problem for p in points if p.problem and p.family == self.of.reference.name}
        return Dimensions(self.of, tuple(curves), reference, metric, tuple(points), problems)

    @cached_property
    def tenants(self) -> list[str]:
        """Those with a score of the reference for every seed."""
        every = self._points(self.of.reference.name, None)
        lacking = {point.tenant for point in every if point.score is None}
        return sorted({point.tenant for point in every} - lacking)

    def _sizes(self, family: Family) -> Iterator[int]:
        room, size = self._room(family), SMALLEST_SIZE
        while size < room.most:
            if size > room.kept:
                yield size
            size *= GROWTH

    def _room(self, family: Family) -> Room:
        if family not in self._rooms:
            self._rooms[family] = family.room(self.recipe, self._loaded())
        return self._rooms[family]

    def _add(self, family: Family, size: int) -> None:
        self._points(family.name, size, family)
        self.sizes.setdefault(family.name, []).append(size)

    def _points(self, name: str, size: int | None, family: Family | None = None) -> list[Point]:
        """The points of all seeds, those trained now that are not there. family: by default the reference."""
        found: list[Point] = []
        for seed in self.seeds:
            own = self.file.of(name, size, seed)
            if own is None:
                own = self._trained(name, size, seed, family or self.of.reference)
                self.file.add(own)
                self.watch(own)
            found += own
        return found

    def _trained(self, name: str, size: int | None, seed: int, family: Family) -> list[Point]:
        """One run: every tenant at its own best rate."""
        room = self._room(family)
        own = family.choices(self.recipe, size, room.kept)
        choices = {**BASELINES[HEAD].choices, "basis": None} if name == NOTHING else own
        recipe = self.recipe.replaced(**choices, seed=seed, run_seed=seed, slots=self.recipe.slots or _slots(room))
        window = RateWindow(recipe, self._loaded(), self.everyone, self.tell)
        first = self.file.of(name, size, 0)
        known = first or self._nearest(name, size)
        is_new = not known and recipe.hash_size is not None
        window.train(self._rates(known, recipe.learning_rate), extends=first is None, wide=is_new)
        return list(self._scored(window, recipe, Point(name, size, seed, "", None)))

    def _nearest(self, name: str, size: int | None) -> list[Point]:
        """The first seed's points at the size nearest to another; none where the family has no hash yet."""
        known = {own: run for (of, own, seed), run in self.file.points.items() if of == name and seed == 0 and own}
        return known[min(known, key=lambda own: abs(log(own / size)))] if known and size else []

    def _rates(self, points: Sequence[Point], usual: float) -> dict[str, float]:
        """What each tenant's rate is looked for around: what another point of the family had, else the usual one."""
        known = {point.tenant: point.lr for point in points if point.lr is not None}
        return {tenant.name: known.get(tenant.name, usual) for tenant in self.everyone}

    def _scored(self, window: RateWindow, recipe: Recipe, point: Point) -> Iterator[Point]:
        """The point with each tenant's score."""
        trained = {tenant.name: found for tenant in self.everyone if (found := window.best(tenant.name))}
        tables = {t.name: table for t in self.everyone if t.name in trained if (table := t.tables(recipe).test)}
        problems = {tenant.name: window.problem(tenant.name) for tenant in self.everyone}
        adapters = {name: adapter for name, (_, adapter) in trained.items()}
        scores = fleet_scores(
            self._loaded(), adapters, tables, skip=lambda name, error: problems.update({name: message_of(error)})
        )
        scored = {one.name: one for one in scores} if tables else {}
        for tenant in self.everyone:
            one = scored.get(tenant.name)
            if one is None:
                yield replace(point, tenant=tenant.name, problem=problems[tenant.name] or "it has no test rows")
            else:
                score, bare, lr = one.scores[one.main], one.base.get(one.main), trained[tenant.name][0]
                yield replace(point, tenant=tenant.name, score=score, metric=one.main, base=bare, lr=lr)

    def _loaded(self) -> Base:
        """The base. Raises DataError where no tenant has rows."""
        if self.base is None or not self._is_ready:
            table = first_table(self.everyone, self.recipe)
            if table is None:
                why = first_problem(self.everyone, self.recipe)
                raise DataError(f"{self.recipe.data}: no tenant has rows that can be used: {why}")
            self.base = base_for(self.recipe, table, self.base)
            self._is_ready = True
        return self.base

    def _scores(self, name: str, size: int | None, tenant: str) -> tuple[float, ...]:
        runs = [self.file.of(name, size, seed) or [] for seed in self.seeds]
        return tuple(p.score for run in runs for p in run if p.tenant == tenant and p.score is not None)

    def _curve(self, family: Family, tenant: str) -> dict[int, tuple[float, ...]]:
        """Scores by size; at 0 those of the base, or of a head alone. A size without any score is left out."""
        reference = [p for seed in self.seeds for p in self.file.of(self.of.reference.name, None, seed) or []]
        bare = tuple(p.base for p in reference if p.tenant == tenant and p.base is not None)
        own = {0: bare[:1] or self._scores(NOTHING, 0, tenant)}
        own |= {size: self._scores(family.name, size, tenant) for size in sorted(self.sizes[family.name])}
        return {size: scores for size, scores in own.items() if scores}

    def _share(self, family: Family, size: int) -> float:
        """The mean over tenants of the score at a size as a share of the reference's."""
        shares = []
        for tenant in self.tenants:
            own, whole = self._scores(family.name, size, tenant), self._scores(self.of.reference.name, None, tenant)
            shares.append(fmean(own) / fmean(whole) if own and fmean(whole) else 0.0)
        return fmean(shares)

    def _reach(self, family: Family, size: int) -> bool:
        return self._share(family, size) >= self.of.share

    def _between(self, family: Family) -> int | None:
        """A new size in the middle of the two between which the curve of all tenants crosses the line."""
        sizes = sorted(self.sizes[family.name])
        curve = {0: (0.0,), **{size: (self._share(family, size),) for size in sizes}}
        at = crossing(curve, (1.0,), self.of.share).size
        if not isfinite(at):
            return None
        below, above = (
            max([s for s in sizes if s < at], default=max(1, self._room(family).kept)),
            min(s for s in sizes if s >= at),
        )
        middle = round((below * above) ** 0.5)
        return middle if below * NEAREST < middle < above / NEAREST else None


def _slots(room: Room) -> int:
    """How many candidates train at a time: a fleet's usual number, or as many as BANK_BYTES hold."""
    return min(SLOTS, slots_within(BANK_BYTES, room.most))
