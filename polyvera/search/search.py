"""search: the best spec for a task under a byte budget, beside uniform allocation and random search at the same cost.

One gradient pass says which layers the loss asks to change. Knapsacks over bytes propose candidates, which train beside
each other and are halved by their validation loss. Each way's winner is trained once more for every seed, at a learning
rate of its own, rounded as it is stored, and scored on test rows that nothing was chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.targets import ALL_LINEAR
from polyvera.data.batching import order
from polyvera.dimension.rate_window import RateWindow
from polyvera.errors import DataError, RecipeError
from polyvera.evaluate.fleet_scores import fleet_scores
from polyvera.model.load import Base
from polyvera.search.candidate import Candidate, Sizer, sites_of
from polyvera.search.halving import Halving, Tried
from polyvera.search.proposals import Proposer
from polyvera.search.saliency import saliencies
from polyvera.store.file.codec import encode
from polyvera.train.many_runs import for_many_runs
from polyvera.train.preparation import base_for, encode_tables, pinned_for_many
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import rounded
from polyvera.train.schedule import num_steps
from polyvera.train.tell import Tell, to_nobody
from polyvera.train.test_rows import with_test_rows

VALIDATION = 0.2  # of the training rows, to choose by, where none are given
SALIENT, UNIFORM, RANDOM = "search", "uniform", "random"


@dataclass(frozen=True)
class SearchTask:
    """What is searched for. Raises RecipeError for what a search cannot use.

    recipe: the rows and the training; targets are the layers that may be adapted, all linear ones by default.
    num_bytes: of the file. stored: the precision of its numbers. num_proposals: candidates of a way to search.
    """

    recipe: Recipe
    num_bytes: int
    stored: str = "int4"
    num_proposals: int = 16
    num_seeds: int = 3

    def __post_init__(self) -> None:
        recipe = for_many_runs(self.recipe, "a search")
        if recipe.fleet:
            raise RecipeError("a search is for one task, and fleet=True trains many: give one file")
        if min(self.num_bytes, self.num_proposals, self.num_seeds) < 1:
            raise RecipeError("a search needs at least a byte, a proposal and a seed")
        given = recipe.model_fields_set
        open_ = {} if "targets" in given else {"targets": ALL_LINEAR}
        validation = {} if recipe.validation is not None else {"validation": VALIDATION}
        object.__setattr__(self, "recipe", recipe.replaced(**open_, **validation))


@dataclass(frozen=True)
class Way:
    """One way to choose: what it tried, by rung, and its winner's scores of every seed.

    num_bytes: of the winner's file. lrs: the learning rate of each seed. adapter: of the first seed, as it is stored.
    """

    name: str
    winner: Candidate
    rungs: tuple[tuple[Tried, ...], ...]
    scores: tuple[float, ...]
    lrs: tuple[float, ...]
    num_bytes: int
    adapter: Adapter

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.scores)


@dataclass(frozen=True)
class Found:
    """What a search found: its ways, the first of them the search itself, and what the scores are.

    saliency: of each layer that could be adapted. layers: all linear ones of the model.
    """

    task: SearchTask
    ways: tuple[Way, ...]
    metric: str
    saliency: dict[str, float] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


Watch = Callable[[str, Tried], None]


def search(
    task: SearchTask,
    *,
    base: Base | None = None,
    watch: Watch = lambda way, tried: None,
    tell: Tell = to_nobody,
) -> Found:
    """Searches, and the ways that it is compared with.

    base: a model that is loaded already; bare again afterwards. watch: called with each candidate that was tried. tell:
    called with each line that the search says of itself. Raises RecipeError where nothing fits, DataError, TargetError.
    """
    with pinned_for_many(task.recipe) as recipe:
        return _searched(SearchRuns(task, recipe, base, tell), watch, tell)


def _searched(runs: SearchRuns, watch: Watch, tell: Tell) -> Found:
    task = runs.task
    saliency = runs.saliency()
    most = ", ".join(f"{name} {share:.0%}" for name, share in sorted(saliency.items(), key=lambda pair: -pair[1])[:5])
    tell(f"the gradient asks most of {most}")
    uniform = runs.proposer.uniform()
    proposed = {
        SALIENT: [*uniform, *runs.proposer.salient(saliency, max(1, task.num_proposals - len(uniform)))],
        UNIFORM: uniform,
        RANDOM: runs.proposer.random(task.num_proposals, task.recipe.run_seed),
    }
    ways = [runs.way(name, candidates, watch) for name, candidates in proposed.items()]
    return Found(task, tuple(ways), runs.metric, saliency, runs.proposer.sizer.layers)


class SearchRuns:
    """The runs of a search. recipe: the task's, as pinned_for_many() gives it."""

    def __init__(self, task: SearchTask, recipe: Recipe, base: Base | None, tell: Tell) -> None:
        [self.tenant] = with_test_rows(recipe, tell)
        tables = self.tenant.tables(recipe)
        self.base, self.recipe = base_for(recipe, tables.training, base), recipe
        tables = tables.suited(self.base.model)
        assert tables.validation is not None and tables.test is not None
        self.task, self.tell, self.table, self.test = task, tell, tables.training, tables.test
        self.rows, _ = encode_tables(recipe, tables, self.base)
        shapes = dict(sites_of(recipe, self.base))
        self.everything = tuple(shapes)
        sizer = Sizer(recipe, self.base, self.table)
        self.proposer = Proposer(sizer, shapes, task.num_bytes, task.stored)
        self.metric = ""

    def saliency(self) -> dict[str, float]:
        """The share of the gradient's energy of each layer."""
        shuffled = order(len(self.rows), self.recipe.run_seed, 0)
        rows = [self.rows.rows[i] for i in shuffled]
        return saliencies(self.base, rows, self.table.row, self.everything)

    def way(self, name: str, candidates: Sequence[Candidate], watch: Watch) -> Way:
        """Halves the candidates and trains the winner."""
        _, total = num_steps(self.recipe, len(self.rows), 1)
        halving = Halving(self.recipe, self.base, self.tenant, self.proposer.sizer, total)
        rungs = halving.run(candidates, lambda tried: watch(name, tried), self.proposer.uniform())
        winner = rungs[-1][0].candidate
        self.tell(f"{name}: {winner.text}")
        scores, lrs, adapters = [], list[float](), list[Adapter]()
        for seed in range(self.task.num_seeds):
            lr, adapter = self._trained(winner, seed, lrs)
            scores.append(self._score(adapter))
            lrs.append(lr)
            adapters.append(adapter)
        size = len(encode(adapters[0], self.task.stored))
        return Way(name, winner, tuple(map(tuple, rungs)), tuple(scores), tuple(lrs), size, adapters[0])

    def _trained(self, winner: Candidate, seed: int, lrs: Sequence[float]) -> tuple[float, Adapter]:
        """The winner at its own best rate by validation loss, with its numbers as they are stored."""
        choices = self.proposer.sizer.choices(winner)
        recipe = self.recipe.replaced(**choices, seed=seed, run_seed=seed, fleet=True)
        window = RateWindow(recipe, self.base, [self.tenant], lambda line: None)
        window.train({self.tenant.name: lrs[0] if lrs else recipe.learning_rate}, extends=not lrs)
        found = window.best(self.tenant.name)
        if found is None:
            raise DataError(f"{winner.text}: {window.problem(self.tenant.name)}")
        lr, adapter = found
        return lr, rounded(adapter, winner.stored)

    def _score(self, adapter: Adapter) -> float:
        [one] = fleet_scores(self.base, {self.tenant.name: adapter}, {self.tenant.name: self.test})
        self.metric = one.main
        return one.scores[one.main]


def winning_recipe(found: Found) -> Recipe:
    """The recipe that trains what the search found, as `polyvera train` takes it, at the rate of its first seed.

    Without test rows, whose scores would go into the header.
    """
    best = found.ways[0]
    own = found.task.recipe.replaced(test=None)
    name = Path(own.data).stem
    choices = {**best.winner.choices(found.layers), "basis": best.adapter.spec.made_basis or None}
    return own.replaced(**choices, lr=best.lrs[0], stored=found.task.stored, name=name)
