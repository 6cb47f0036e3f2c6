"""`train --fleet` and `eval --fleet` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from polyvera.cli import tables
from polyvera.cli.session import Rows, base_name, task_of
from polyvera.cli.training import print_cost
from polyvera.errors import RecipeError, message_of
from polyvera.model.prompt import TEMPLATE
from polyvera.plan import bytes_text
from polyvera.train.memory import peak_bytes
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from polyvera.adapter.adapter import Adapter
    from polyvera.data.tables import Table
    from polyvera.evaluate.fleet_scores import TenantScores
    from polyvera.model.load import Base
    from polyvera.train.fleet.fleet import Fleet
    from polyvera.train.fleet.one_process import FleetResult
    from polyvera.train.tenants import Tenant

INCOMPLETE = 3  # exit status: the others are published, and a tenant was skipped or quarantined


def run(recipe: Recipe, *, resume: bool, dry_run: bool, out: Console) -> None:
    """Prints the plan, trains every tenant, publishes each as it is finished, and says what became of all.

    Ends in exit status INCOMPLETE where a tenant was left out.
    """
    from polyvera.train.fleet.journal import FINISHED
    from polyvera.train.tell import to_stderr
    from polyvera.train.tenants import tenants, unread_files

    everyone = tenants(recipe)
    for place in (recipe.data, recipe.validation, recipe.test):
        to_stderr(unread_files(place) if isinstance(place, str) else "")
    first = print_cost(recipe, out, everyone)
    if dry_run:
        to_stderr(first.unread_text)
        return
    result = _trained(recipe, everyone, resume)
    _report(result, recipe.store, out)
    if result.scores:
        show(result.scores, recipe.folder, out)
    if any(outcome.status != FINISHED for outcome in result.outcomes):
        raise typer.Exit(INCOMPLETE)


def _trained(recipe: Recipe, everyone: Sequence[Tenant], resume: bool) -> FleetResult:
    from polyvera.store.registry import Registry
    from polyvera.train.fleet.train_fleet import train_fleet

    with _progress(len(everyone)) as shown:
        return train_fleet(
            recipe,
            everyone=everyone,
            registry=Registry(recipe.store),
            resume=resume,
            watch=None if recipe.workers is not None else _watch(shown),
            on_score=_counting(shown),
        )


@dataclass
class FleetScores:
    """The scores of each tenant that has some, and why each other has none, by name."""

    found: list[TenantScores] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def skip(self, name: str, error: Exception) -> None:
        """Keeps why a tenant is not scored."""
        self.problems[name] = message_of(error)

    def report(self, output: Path | None, *, as_json: bool, out: Console) -> None:
        """The scores as JSON, or as a table with its files. Raises typer.Exit(INCOMPLETE) where a tenant has none."""
        if as_json:
            scores: dict[str, Any] = {one.name: {"own": dict(one.scores), "base": dict(one.base)} for one in self.found}
            print(json.dumps(scores | {name: {"problem": why} for name, why in self.problems.items()}, indent=2))
        elif self.found:
            show(self.found, output, out)
        for name, why in self.problems.items():
            tables.console(error=True).print(f"[bold]{escape(name)}[/] skipped: {escape(why)}")
        if self.problems:
            raise typer.Exit(INCOMPLETE)


def score(
    names: Sequence[str], rows: Rows, *, store: str, model: str | None, adapter_column: str | None
) -> FleetScores:
    """The scores of each tenant's adapter on its own rows, beside the base model and the majority answer."""
    from polyvera.model.answer import meaning_of
    from polyvera.model.load import load_base, place
    from polyvera.model.unread import check_read
    from polyvera.store.registry import Registry
    from polyvera.train.tell import to_stderr, told_once
    from polyvera.train.tenants import Tables, sources, unread_files

    if rows.source is None:
        raise RecipeError("there are no rows to answer: give --data, a folder or a file with a row for each tenant")
    if len(names) > 1:
        raise RecipeError(f"--fleet takes one prefix, and {', '.join(names)} were given")
    to_stderr(unread_files(rows.source))
    prefix = f"{names[0]}/" if names else ""
    asked = Recipe(model=model or "", data=rows.source, columns=dict(rows.columns))
    registry = Registry(store)
    found: dict[str, Table] = {}
    adapters: dict[str, Adapter] = {}
    scored, told = FleetScores(), told_once(to_stderr)
    for name, one in sources(rows.source, adapter_column).items():
        try:
            adapter = registry.get(prefix + name)
            check_read(adapter, prefix + name)
            meaning, chat = meaning_of(adapter), adapter.prompt_form == TEMPLATE if rows.chat is None else rows.chat
            task = None if meaning.row.writes else meaning.task
            table = one.read(asked.replaced(chat=chat), task)
            told(Tables(table, None, None))
            found[name], adapters[name] = rows.cut(table), adapter
        except Exception as error:  # one tenant's rows or adapter end no other's scoring
            scored.skip(name, error)
    if adapters:
        several = list(adapters.values())
        base = place(load_base(base_name(several, model), **task_of(several[:1])))
        _shown(base, adapters, found, scored, batch_size=rows.batch_size)
    return scored


def _shown(
    base: Base, adapters: Mapping[str, Adapter], found: Mapping[str, Table], scored: FleetScores, **choices: int
) -> None:
    """Scores them all, with a bar that moves on, or a line for each where the output is no terminal."""
    from polyvera.evaluate.fleet_scores import fleet_scores

    with _progress(len(found)) as shown:
        tell = _counting(shown)
        for one in fleet_scores(base, adapters, found, skip=scored.skip, **choices):
            scored.found.append(one)
            tell(one)
            shown.update(shown.task_ids[0], completed=len(scored.found))


def _counting(shown: Progress) -> Callable[[TenantScores], None]:
    """Prints a line for each tenant's score where the output is no terminal."""
    numbers = count(1)

    def counted(one: TenantScores) -> None:
        text = f"{next(numbers)}: {one.name} {one.main} {one.scores[one.main]:.3f}"
        shown.update(shown.task_ids[0], description=text)
        if shown.disable:
            shown.console.print(text)

    return counted


def show(scored: Sequence[TenantScores], output: Path | None, out: Console) -> None:
    """The table, and with an output the CSV and the picture too."""
    from polyvera.evaluate.fleet_scores import MAJORITY, draw, page, write

    rows = [
        {
            "tenant": one.name,
            "score": one.main,
            "adapter": f"{one.scores[one.main]:.3f}",
            "base": f"{one.base[one.main]:.3f}" if one.main in one.base else "",
            "majority": f"{one.scores[MAJORITY]:.3f}" if MAJORITY in one.scores else "",
            "rows": one.num_rows,
        }
        for one in sorted(scored, key=lambda one: one.name)
    ]
    out.print(tables.table_of(rows, "", ("adapter", "base", "majority", "rows")))
    if output is not None:
        path = write(sorted(scored, key=lambda one: one.name), output / "scores.csv")
        picture = draw(scored, output / "scores.png", f"{len(scored)} adapters, each on its own test rows")
        table = page(scored, output / "scores.md")
        out.print(f"table: {table}\nall scores: {path}\npicture: {picture}")


def _report(result: FleetResult, store: str, out: Console) -> None:
    from polyvera.train.fleet.journal import FINISHED

    finished, traffic = result.of(FINISHED), result.traffic
    out.print(
        f"{len(finished)} of {len(result.outcomes)} tenants trained and published in {store}, "
        f"{result.seconds:.0f} s, {traffic.rounds:,} rounds, {traffic.tokens_per_s:,.0f} tokens/s, "
        f"padding {traffic.padding_share:.1%}, peak memory {bytes_text(peak_bytes())}"
    )
    changes = [outcome.rounding_loss for outcome in finished if outcome.rounding_loss is not None]
    if changes:
        out.print(
            f"storing raised the loss of the training rows by {fmean(changes):.3g} nats on average, "
            f"{max(changes):.3g} at most"
        )
    problems = [outcome for outcome in result.outcomes if outcome.status != FINISHED]
    for outcome in problems:
        out.print(f"[bold]{escape(outcome.name)}[/] {outcome.status}: {escape(outcome.problem)}")


def _progress(total: int) -> Progress:
    out = tables.console(error=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    shown = Progress(*columns, console=out, disable=not out.is_terminal)
    shown.add_task("", total=total)
    return shown


def _watch(shown: Progress) -> Any:
    """Moves the bar, or prints a line where the output is no terminal and tenants have left."""
    told = [0]

    def watch(fleet: Fleet) -> None:
        left, traffic = len(fleet.journal.outcomes), fleet.traffic
        text = f"{len(fleet.members)} training, {len(fleet.waiting)} waiting, {traffic.tokens_per_s:,.0f} tokens/s"
        shown.update(shown.task_ids[0], completed=left, description=text)
        if shown.disable and left > told[0]:
            told[0] = left
            shown.console.print(f"{left} tenants have left, {text}, round {traffic.rounds:,}")

    return watch
