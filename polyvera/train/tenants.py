"""Tenant: one adapter of a fleet by its name, and where its rows come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from polyvera.data.row_files import READERS, NumberedRow
from polyvera.data.row_form import FORMS
from polyvera.data.tables import SHOWN, Table, alike, drawn, grouped, read, split, table
from polyvera.errors import DataError, message_of
from polyvera.model.config import labels_of
from polyvera.train.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polyvera.model.load import Base

COLUMN = "adapter"
ROWS_OF_A_CLASS = 2


@dataclass(frozen=True)
class TenantRows:
    """A file of one tenant's rows, or its share of the rows of a common file. They are checked when they are read."""

    name: str
    rows: tuple[NumberedRow, ...] | None = None

    def read(self, recipe: Recipe, task: str | None = None) -> Table:
        """The examples; task: that of rows which these belong to. Raises DataError."""
        task = task or recipe.task
        if self.rows is None:
            return read(self.name, recipe.columns, chat=bool(recipe.chat), task=task)
        return table(self.name, self.rows, recipe.columns, chat=bool(recipe.chat), task=task)


@dataclass(frozen=True)
class Tables:
    """One tenant's examples: training to learn from, validation to watch, test to score at the end."""

    training: Table
    validation: Table | None
    test: Table | None

    def suited(self, model: PreTrainedModel) -> Tables:
        """The same rows as that model reads them. Raises DataError."""
        found = (table and table.suited(model) for table in (self.training, self.validation, self.test))
        return Tables(*found)  # type: ignore[arg-type]

    def labelled(self, labels: tuple[str, ...]) -> Tables:
        """The same with the classes in that order."""
        ordered = (table and replace(table, labels=labels) for table in (self.training, self.validation, self.test))
        return Tables(*ordered)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tenant:
    """One adapter to be: its name, and its rows by what they are for. problem: why it cannot be trained, or ''."""

    name: str
    training: TenantRows
    validation: TenantRows | None = None
    test: TenantRows | None = None
    problem: str = ""

    def tables(self, recipe: Recipe) -> Tables:
        """The examples, read now. Raises DataError."""
        if self.problem:
            raise DataError(self.problem)
        whole = self.training.read(recipe)
        _check_classes(whole)
        training = drawn(whole, recipe.max_rows or len(whole), recipe.run_seed)
        validation = None if self.validation is None else alike(whole, self.validation.read(recipe, whole.task))
        if isinstance(recipe.validation, float):
            training, validation = split(training, recipe.validation, recipe.run_seed)
        _check_others(training, recipe.batch_size)
        return Tables(
            training, validation, None if self.test is None else alike(whole, self.test.read(recipe, whole.task))
        )


def _check_classes(table: Table) -> None:
    """Raises DataError for labels that make no classification."""
    num_classes = len(table.labels)
    if table.row.has_head and not num_classes:
        raise DataError(f"{table.source}: none of its {len(table)} rows has a label, so there is nothing to learn")
    if table.row.span and len({example.number for example in table.examples}) == 1:
        raise DataError(
            f"{table.source}: all {len(table)} rows have the number {table.examples[0].number:g}: add others"
        )
    _check_spelling(table)
    if (
        table.row.has_head
        and not table.row.span
        and len({frozenset(example.labels) for example in table.examples}) == 1
    ):
        _check_alike(table)
    if table.row.chooses and num_classes * ROWS_OF_A_CLASS > len(table):
        shown = ", ".join(map(repr, table.labels[:SHOWN]))
        raise DataError(
            f"{table.source} has {num_classes} classes in {len(table)} rows ({shown}, ...): a class needs "
            f"{ROWS_OF_A_CLASS} rows or more on average; for numbers as answers give task='regression', for texts "
            "prompt and completion"
        )


def _check_alike(table: Table) -> None:
    """Raises DataError for rows of the same labels each that are all there are."""
    labels = table.labels[:SHOWN]
    if len(table.labels) == 1:
        raise DataError(f"{table.source}: all {len(table)} rows have the label {labels[0]!r}: add another class")
    if table.row.has_threshold:
        raise DataError(
            f"{table.source}: all {len(table)} rows have the same labels, {', '.join(map(repr, labels))}: add rows "
            "without some of them; where a row has a yes or no for each label, give the names of its own"
        )


def _check_others(table: Table, batch_size: int) -> None:
    """Raises DataError for batches of one row that has to be told from others."""
    if table.row.needs_others and min(len(table), batch_size) == 1 and not table.examples[0].rejected:
        raise DataError(
            f"{table.source}: a batch of one row has no other to tell its positive from, so nothing would be learned: "
            "give more rows and a larger batch_size, or a negative with each"
        )


def _check_spelling(table: Table) -> None:
    """Raises DataError for two labels that nobody can tell apart by sight."""
    first: dict[str, str] = {}
    for label in table.labels:
        other = first.setdefault(" ".join(normalize("NFC", label).split()), label)
        if other == label:
            continue
        differences = {
            "spaces": normalize("NFC", other) != normalize("NFC", label),
            "how accents are encoded": other.split() != label.split(),  # of its own, or within its letter
        }
        differ = " and in ".join(what for what, is_there in differences.items() if is_there)
        spelled = repr if other.split() == label.split() else ascii
        raise DataError(
            f"{table.source}: the labels {spelled(other)} and {spelled(label)} differ in {differ} alone: make them one"
        )


def only_tenant(recipe: Recipe) -> Tenant:
    """The tenant of a recipe that trains one adapter."""
    validation = TenantRows(recipe.validation) if isinstance(recipe.validation, str) else None
    return Tenant("", TenantRows(recipe.data), validation, None if recipe.test is None else TenantRows(recipe.test))


def tenants(recipe: Recipe, tell: Callable[[str], None]) -> list[Tenant]:
    """Every tenant of a fleet's recipe, by name; rows are read later. Raises DataError where there are none.

    tell: called with a line for files that are not read, and for rows of tenants that have none to train on.
    """
    places = (recipe.data, recipe.validation if isinstance(recipe.validation, str) else None, recipe.test)
    training, watched, tests = (_told(place, recipe.adapter_column, tell) for place in places)
    for place, there in zip(places[1:], (watched, tests), strict=True):
        others = sorted(there.keys() - training.keys())
        if others:
            tell(
                f"{place}: {_first(others)} {'has' if len(others) == 1 else 'have'} no rows in {recipe.data}: not read"
            )
    found = []
    for name, source in sorted(training.items()):
        lacking = [what for what, there in (("validation", watched), ("test", tests)) if there and name not in there]
        problem = f"{source.name}: {name!r} has no rows in {' and '.join(lacking)}" if lacking else ""
        found.append(Tenant(name, source, watched.get(name), tests.get(name), problem))
    return found


def _told(place: str | None, column: str | None, tell: Callable[[str], None]) -> Mapping[str, TenantRows]:
    """The rows of each tenant, none where no place is given, and a word on what the place holds beside them."""
    if place is None:
        return {}
    unread = unread_files(place)
    if unread:
        tell(unread)
    return sources(place, column)


def first_table(line: Iterable[Tenant], recipe: Recipe) -> Table | None:
    """The rows of the first tenant whose rows can be read: they tell what kind of model the fleet needs."""
    for tenant in line:
        try:
            return tenant.tables(recipe).training
        except Exception:  # it is reported when the tenant's turn comes
            continue
    return None


def first_problem(line: Sequence[Tenant], recipe: Recipe) -> str:
    """Why the first tenant cannot be trained, or ''."""
    try:
        line[0].tables(recipe)
    except Exception as error:  # whatever its rows raise
        return message_of(error)
    return ""


def sources(place: str, column: str | None) -> Mapping[str, TenantRows]:
    """The rows of each tenant: the files of a folder by their names, or the rows of a file by a column.

    Raises DataError for a folder without files, and for a column that would have no effect.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        rows = grouped(place, column or COLUMN)
        return {name: TenantRows(f"{place} ({name})", tuple(own)) for name, own in rows.items()}
    if column is not None:
        raise DataError(f"{place} is a folder, one file a tenant, so adapter_column={column!r} would have no effect")
    files = _files(folder)
    if not files:
        raise DataError(f"{place} holds no file that ends in {', '.join(READERS)}: a fleet has a file for each tenant")
    twice = {a.stem for a, b in pairwise(files) if a.stem == b.stem}
    if twice:
        raise DataError(f"{place} holds several files named {min(twice)!r}: one file a tenant")
    return {path.stem: TenantRows(str(path)) for path in files}


def unread_files(place: str) -> str:
    """What a folder of tenants holds beside their files, in one line; '' for nothing."""
    folder = Path(place).expanduser()
    own = {*_files(folder)} if folder.is_dir() else set[Path]()
    others = [path.name for path in sorted(folder.iterdir()) if path not in own] if own else []
    others = [name for name in others if not name.startswith(".")]
    return f"{place}: not read: {_first(others)}" if others else ""


def _first(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READERS and path.is_file()]


def labelled(tables: Tables, kind: str, base: Base) -> Tables:
    """The tables with their classes in the order of the model's outputs. Raises DataError for rows of another kind."""
    tables = tables.suited(base.model)
    training = tables.training
    if training.task != FORMS[kind].task:
        raise DataError(f"{training.source} holds {training.task} rows, and the fleet's first tenant {kind}")
    if not training.row.has_head:
        return tables
    known = labels_of(base.model.config)
    if len(known) != len(training.labels):
        raise DataError(
            f"{training.source} has {len(training.labels)} classes, and the model has {len(known)} outputs: train "
            "tenants with another number of classes in a fleet of their own"
        )
    return tables if set(known) != set(training.labels) else tables.labelled(known)
