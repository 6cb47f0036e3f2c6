"""compare: methods x seeds x tasks under one budget, each method with a learning rate of its own, from a sweep.

A sweep trains one seed at several multiples of the method's usual rate and takes the one of the lowest validation
loss. Where that is the lowest or the highest of them, it goes on beyond it until the loss turns. The test rows are
looked at only afterwards, once for each seed. Every run is a line of runs.csv as soon as it ends, so a comparison that
was cut short goes on where it was.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyvera.adapter.method import METHODS
from polyvera.compare.baseline import BASELINES, PARTS
from polyvera.compare.bracket import bracketed
from polyvera.compare.rival import Rival, num_head_params, rival_base, with_head_rate
from polyvera.errors import DivergedError, RecipeError, did_you_mean
from polyvera.settings.source import Source, read_toml
from polyvera.train.memory import forget_peak, peak_bytes
from polyvera.train.recipe import Recipe

RUNS = "runs.csv"
SWEEP, FINAL = "sweep", "final"
FP32 = 4
UNPUBLISHED: Mapping[str, None] = {"name": None, "alias": None}
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Comparison(BaseModel):
    """What is compared, on what. Raises RecipeError.

    methods: rows of the table, 'full', 'head' (a linear probe), 'base', or 'mean' (of the adapters of a
    store, which method.mean.store names, and nothing more). factors: multiples of each method's own learning
    rate that the sweep tries. extensions: how many more it tries beyond the lowest or the highest of them.
    settings: keys of a Recipe for all runs; method: more of them for one method; task: more of them for each task, and
    `score`, the name of the result to compare by, and `also`, names of further results to tell. A method that is PEFT's
    own takes `peft`, choices of PEFT's config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    factors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    extensions: Annotated[int, Field(ge=0)] = 3
    title: str = "Methods side by side"
    settings: dict[str, Any] = {}
    method: dict[str, dict[str, Any]] = {}
    task: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors(include_url=False))
            raise RecipeError("\n".join(lines)) from None
        for name in (*self.methods, *self.method):
            known = (*BASELINES, *METHODS)
            if name not in known:
                raise RecipeError(f"methods: {name!r} must be one of: {', '.join(known)}{did_you_mean(name, known)}")
        for planned in self.plans(self.factors[0], self.seeds[0]):
            planned.recipe()

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """The comparison in a TOML file. Raises RecipeError that names the file."""
        given = read_toml(path)
        try:
            return cls(**given)
        except RecipeError as error:
            raise RecipeError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None

    def factors_of(self, method: str) -> tuple[float, ...]:
        """The factors that are tried for a method: one where nothing of it moves."""
        return self.factors if method not in BASELINES or BASELINES[method].is_swept else (1.0,)

    def plans(self, factor: float, seed: int) -> Iterator[PlannedRun]:
        """One run of each method on each task."""
        for task, own in self.task.items():
            for method in self.methods:
                choices = {**self.settings, **own, **self.method.get(method, {})}
                for name in UNPUBLISHED:
                    if name in choices:
                        raise RecipeError(f"{name} has no effect: a comparison publishes no adapters; remove it")
                score, also = str(choices.pop("score", "accuracy")), tuple(choices.pop("also", ()))
                peft = choices.pop("peft", {})
                if peft and rival_of(method) is None:
                    raise RecipeError(f"method {method!r}: peft={peft} is for methods of PEFT's own code; remove it")
                yield PlannedRun(task, method, factor, seed, score, choices, also, peft=peft)


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made. is_edge: whether its rate is the lowest or the highest that was tried."""

    task: str
    method: str
    factor: float
    seed: int
    score: str
    choices: Mapping[str, Any]
    also: tuple[str, ...] = ()
    is_edge: bool = False
    peft: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """The recipe of the run. Raises RecipeError."""
        baseline = BASELINES.get(self.method)
        what = {"method": self.method, "seed": self.seed} if baseline is None else dict(baseline.choices)
        whole = Recipe.read(Source({**self.choices, **what, "run_seed": self.seed})).replaced(**UNPUBLISHED)
        if baseline is None:
            return whole.replaced(lr=self.factor * whole.learning_rate)
        return whole.replaced(**{baseline.rate: self.factor * baseline.lr if baseline.is_swept else baseline.lr})


@dataclass(frozen=True)
class Run:
    """What came of a run. also: further results, 'name=value' with spaces between.

    bytes are of fp32 numbers; peak_bytes the most memory that the process held. is_edge: 1 where the rate is the lowest
    or the highest that was tried, so that a better one may lie beyond. rival_bytes: of what PEFT's own code trains, as
    PEFT would store it.
    """

    task: str
    method: str
    phase: str
    factor: float
    seed: int
    lr: float
    score: str
    value: float
    eval_loss: float
    num_params: int
    num_head_params: int
    steps: int
    seconds: float
    peak_bytes: int
    also: str = ""
    is_edge: int = 0
    rival_bytes: int = 0

    @property
    def others(self) -> dict[str, float]:
        """The further results by name."""
        pairs = (one.split("=") for one in self.also.split())
        return {name: float(value) for name, value in pairs}

    @property
    def stored_bytes(self) -> int:
        """What is stored, the head included."""
        return self.adapter_bytes + FP32 * self.num_head_params

    @property
    def adapter_bytes(self) -> int:
        """What is stored without the head."""
        return self.rival_bytes or FP32 * (self.num_params - self.num_head_params)


Watch = Callable[[Run], None]


def compare(comparison: Comparison, folder: Path, watch: Watch = lambda run: None) -> list[Run]:
    """Every final run of a comparison, those of an earlier call taken from the folder. Raises PolyveraError."""
    done = {_key(run): run for run in read(folder / RUNS)}

    def keep(run: Run) -> None:
        done[_key(run)] = run
        _append(folder / RUNS, run)
        watch(run)

    def made(planned: PlannedRun, phase: str) -> Run:
        key = _key_of(planned, phase)
        if key not in done:
            keep(trained(planned, phase))
        return done[key]

    def loss_at(planned: PlannedRun, factor: float) -> float:
        return made(_at(planned, factor, planned.seed), SWEEP).eval_loss

    def fill(planned: PlannedRun, factors: Sequence[float]) -> None:
        """Makes those runs of a sweep that are not there yet, where they can be slots of one bank."""
        missing = [one for f in factors if _key_of(one := _at(planned, f, planned.seed), SWEEP) not in done]
        for run in in_slots(missing) if len(missing) > 1 else ():
            keep(run)

    finals = []
    for planned in comparison.plans(comparison.factors[0], comparison.seeds[0]):
        factors = comparison.factors_of(planned.method)
        fill(planned, factors)
        losses = bracketed(factors, comparison.extensions, partial(loss_at, planned))
        best = min(losses, key=lambda factor: losses[factor])
        is_edge = len(losses) > 1 and best in (min(losses), max(losses))
        chosen = replace(planned, is_edge=is_edge)
        finals += [made(_at(chosen, best, seed), FINAL) for seed in comparison.seeds]
    return finals


def trained(planned: PlannedRun, phase: str) -> Run:
    """Makes one run: trains, and looks at the test rows only in the final phase."""
    from polyvera.train.trainer import train

    recipe = planned.recipe()
    recipe = recipe if phase == FINAL else recipe.replaced(test=None)
    method = rival_of(planned.method)
    rival = None if method is None else rival_base(recipe, method, planned.peft)
    recipe = recipe if rival is None else with_head_rate(recipe, rival.base)
    forget_peak()
    try:
        result = train(recipe, base=None if rival is None else rival.base, progress=False)
    except DivergedError:
        if phase == FINAL:
            raise
        return _diverged(planned, recipe)
    head = num_head_params(result)
    trains = BASELINES[planned.method].trains if planned.method in BASELINES else PARTS
    sizes = {"adapter": result.num_trained - head, "head": head}
    if phase == FINAL:
        _check_scores(planned, result.scores)
    value, loss = (float(result.scores.get(name, float("nan"))) for name in (planned.score, "eval_loss"))
    also = " ".join(f"{name}={result.scores[name]:.6g}" for name in planned.also if phase == FINAL)
    return Run(
        planned.task,
        planned.method,
        phase,
        planned.factor,
        planned.seed,
        _rate(planned, recipe),
        planned.score,
        value,
        loss,
        sum(sizes[part] for part in trains),
        sizes["head"] if "head" in trains else 0,
        result.num_steps,
        round(result.seconds, 1),
        peak_bytes(),
        also,
        int(planned.is_edge),
        0 if rival is None else rival.stored_bytes,
    )


def in_slots(every: Sequence[PlannedRun]) -> list[Run]:
    """Runs of one sweep, which differ in their factor alone, as slots of one bank; [] where they cannot be."""
    from polyvera.compare.slot_sweep import slot_sweep, takes_slots

    first, *_ = every
    recipes = [planned.recipe().replaced(test=None) for planned in every]
    if first.method in BASELINES or not takes_slots(recipes[0]):
        return []
    forget_peak()
    found = slot_sweep(recipes[0], [recipe.learning_rate for recipe in recipes])
    return [
        Run(
            *(first.task, first.method, SWEEP, planned.factor, first.seed, one.lr, first.score, float("nan")),
            *(one.eval_loss, one.num_params, one.num_head_params, one.num_steps, one.seconds, peak_bytes()),
        )
        for planned, one in zip(every, found, strict=True)
    ]


def rival_of(method: str) -> Rival | None:
    """What PEFT puts into the base, None for what is not PEFT's own."""
    return BASELINES[method].rival if method in BASELINES else None


def _rate(planned: PlannedRun, recipe: Recipe) -> float:
    """The rate that is swept."""
    is_of_head = planned.method in BASELINES and BASELINES[planned.method].rate == "head_lr"
    return recipe.head_learning_rate if is_of_head else recipe.learning_rate


def _diverged(planned: PlannedRun, recipe: Recipe) -> Run:
    """A run of a sweep whose loss was no number."""
    own = (planned.task, planned.method, SWEEP, planned.factor, planned.seed, _rate(planned, recipe), planned.score)
    return Run(*own, float("nan"), inf, 0, 0, 0, 0.0, peak_bytes())


def _check_scores(planned: PlannedRun, found: Mapping[str, float]) -> None:
    for name in (planned.score, *planned.also):
        if name not in found:
            raise RecipeError(
                f"task {planned.task!r}: score={name!r} must be one of: {', '.join(found)}{did_you_mean(name, found)}"
            )


def read(path: Path) -> list[Run]:
    """The runs in a file; a line that was cut short does not count."""
    if not path.exists():
        return []
    kinds = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Run)}
    with path.open(newline="", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values() and None not in row]
    return [Run(**{name: kinds[name](row[name]) for name in kinds if name in row}) for row in whole]


def _append(path: Path, run: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Run)], lineterminator="\n")
        if before and not before.endswith(b"\n"):
            file.write("\n")
        if not before:
            writer.writeheader()
        writer.writerow(asdict(run))


def _at(planned: PlannedRun, factor: float, seed: int) -> PlannedRun:
    return replace(planned, factor=factor, seed=seed)


def _key_of(planned: PlannedRun, phase: str) -> tuple[str, str, str, float, int]:
    return (planned.task, planned.method, phase, planned.factor, planned.seed)


def _key(run: Run) -> tuple[str, str, str, float, int]:
    return (run.task, run.method, run.phase, run.factor, run.seed)


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs of each (task, method), in the order in which they come."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.task, run.method), []).append(run)
    return found
