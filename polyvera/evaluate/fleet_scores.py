"""fleet_scores: how each adapter of a fleet answers its own rows, beside the base model and the majority answer."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, load
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.data.row_form import Example
from polyvera.data.tables import Table
from polyvera.errors import DataError
from polyvera.evaluate.evaluate import evaluate
from polyvera.model.answer import Meaning, meaning_of
from polyvera.model.frozen_head import LabelReader, with_head
from polyvera.model.load import Base
from polyvera.model.task import TASKS

AT_A_TIME = 16
MAJORITY = "majority"
FIRST = frozenset(row.metrics[0] for row in TASKS.values() if row.metrics)
ALTERNATIVE = "rouge_l"  # where no answer is right to the letter by any guess


@dataclass(frozen=True)
class TenantScores:
    """One tenant's scores in the order of its task's, the base model's on the same rows ({} where it has no head for
    them), and how many rows.
    """

    name: str
    scores: Mapping[str, float]
    base: Mapping[str, float]
    num_rows: int

    @property
    def main(self) -> str:
        """The score to compare by: the task's first, exact_match, or rouge_l where answers are free text."""
        own = next((name for name in self.scores if name in FIRST), None)
        if own is not None:
            return own
        free = self.scores.get(MAJORITY, 0.0) < 0.1 and ALTERNATIVE in self.scores
        return ALTERNATIVE if free else "exact_match" if "exact_match" in self.scores else "token_accuracy"


def fleet_scores(
    base: Base,
    adapters: Mapping[str, Adapter],
    tables: Mapping[str, Table],
    *,
    batch_size: int = 16,
    at_a_time: int = AT_A_TIME,
    skip: Callable[[str, Exception], None] | None = None,
) -> Iterator[TenantScores]:
    """Answers every tenant's rows by its adapter and by the base, rows of all in the same batches.

    adapters, tables: by the tenant's name; one base model, bare, and bare again afterwards. Tenants with answers of
    like length come together, so that none waits for a longer one. skip: is called with a tenant that can't be scored
    and the reason, and the others go on; without it that is raised, as evaluate() and load() do.
    """
    order = sorted(tables, key=lambda name: (_longest(tables[name]), name))
    for first in range(0, len(order), at_a_time):
        names = order[first : first + at_a_time]
        try:
            yield from _together(base, adapters, tables, names, batch_size)
        except Exception:
            if skip is None:
                raise
            yield from _apart(base, adapters, tables, names, batch_size, skip)


def _together(
    base: Base, adapters: Mapping[str, Adapter], tables: Mapping[str, Table], names: Sequence[str], batch_size: int
) -> list[TenantScores]:
    """The scores of these tenants, all or none."""
    try:
        reader = LabelReader(base.model, base.tokenizer)
        slots = load(base.model, [with_head(adapters[name], reader) for name in names])
        meanings = {slot: meaning_of(adapters[name]) for name, slot in zip(names, slots, strict=True)}
        return list(_answered(base, {n: tables[n] for n in names}, meanings, batch_size))
    finally:
        eject(base.model)


def _apart(
    base: Base,
    adapters: Mapping[str, Adapter],
    tables: Mapping[str, Table],
    names: Sequence[str],
    batch_size: int,
    skip: Callable[[str, Exception], None],
) -> Iterator[TenantScores]:
    """The scores of these tenants, one after the other."""
    for name in names:
        try:
            found = _together(base, adapters, tables, [name], batch_size)
        except Exception as error:  # whatever one tenant raises ends no other's scoring
            skip(name, error)
        else:
            yield from found


def _answered(
    base: Base, tables: Mapping[str, Table], meanings: Mapping[int, Meaning], batch_size: int
) -> Iterator[TenantScores]:
    """meanings: by the slots of the tenants, in their order."""
    first = next(iter(tables.values()))
    other = next((table for table in tables.values() if table.task != first.task), None)
    if other is not None:
        raise DataError(f"{other.source} holds {other.kind} rows, and {first.source} {first.kind}")
    asked: list[Example] = []
    chosen: list[int] = []
    places: dict[str, dict[str, range]] = {}
    for (name, table), slot in zip(tables.items(), meanings, strict=True):
        # a head that was never trained has nothing to say, so a classifier's base is left out
        for who, used in (("own", slot), *((("base", BASE_SLOT),) if table.row.scores_base else ())):
            places.setdefault(name, {})[who] = range(len(asked), len(asked) + len(table))
            asked += table.examples
            chosen += [used] * len(table)
    labels = tuple(dict.fromkeys(label for table in tables.values() for label in table.labels))
    whole = replace(first, examples=tuple(asked), source=f"{first.source} and others", labels=labels)
    found = evaluate(base.model, base.tokenizer, whole, chosen, batch_size=batch_size, meanings=meanings)
    for name, rows in places.items():
        scores = {who: found.of_rows(where) for who, where in rows.items()}
        yield TenantScores(name, scores["own"], scores.get("base", {}), len(tables[name]))


def _longest(table: Table) -> int:
    return max(len(right) for example in table.examples for right in example.right)


def write(found: Sequence[TenantScores], path: Path) -> Path:
    """A CSV with a row for each tenant: its scores, and the base model's with `base_` before their names."""
    names = list(dict.fromkeys(name for one in found for name in one.scores))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tenant", "rows", "main", *names, *(f"base_{name}" for name in names if name != MAJORITY)])
        for one in found:
            own = [_cell(one.scores, name) for name in names]
            writer.writerow(
                [one.name, one.num_rows, one.main, *own, *(_cell(one.base, name) for name in names if name != MAJORITY)]
            )
    return path


def page(found: Sequence[TenantScores], path: Path) -> Path:
    """The main score of each tenant as a Markdown table, the best first, with the medians above it."""
    ranked = sorted(found, key=lambda one: -one.scores[one.main])
    own, bare = [one.scores[one.main] for one in ranked], [one.base.get(one.main) for one in ranked]
    known = [score for score in bare if score is not None]
    middle = f"median {median(own):.3f}" + (f", of the base model {median(known):.3f}" if known else "")
    better = sum(score is not None and mine > score for mine, score in zip(own, bare, strict=True))
    lines = [f"{len(ranked)} adapters: {middle}; {better} are better than the base model.", ""]
    lines += ["| tenant | score | adapter | base model | majority answer | rows |", "|---|---|---:|---:|---:|---:|"]
    for one in ranked:
        cells = [_cell(one.scores, one.main), _cell(one.base, one.main), _cell(one.scores, MAJORITY)]
        lines.append(f"| {one.name} | {one.main} | {' | '.join(cells)} | {one.num_rows} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(scores: Mapping[str, float], name: str) -> str:
    return f"{scores[name]:.4f}" if name in scores else ""


def draw(found: Sequence[TenantScores], path: Path, title: str) -> Path:
    """A picture: each tenant's main score, the base model's and the majority answer's beside it; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ranked = sorted(found, key=lambda one: one.scores[one.main])
    figure = Figure(figsize=(9, 1.2 + 0.19 * len(ranked)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(ranked))
    axes.barh(rows, [one.scores[one.main] for one in ranked], color="#7aa0d6", height=0.75, label="adapter")
    axes.plot([one.base.get(one.main, float("nan")) for one in ranked], rows, "o", color="#c4501b", label="base model")
    constant = [one.scores.get(MAJORITY, float("nan")) if one.main != ALTERNATIVE else float("nan") for one in ranked]
    axes.plot(constant, rows, "|", color="#222222", markersize=9, markeredgewidth=2, label="majority answer")
    axes.set_yticks(rows, [f"{one.name}  ({one.main})" for one in ranked], fontsize=6.5)
    axes.set(xlim=(0, 1), ylim=(-0.7, len(ranked) - 0.3), xlabel="score on the test rows", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path
