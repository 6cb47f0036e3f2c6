"""read_rows: the rows of a file or a hub data set, each with its number; whatever cannot be read names the place."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polyvera.errors import DataError, did_you_mean, message_of

Row = Mapping[str, Any]
NumberedRow = tuple[int, Row]
HUB = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<split>.+))?")

MARK = "\ufeff"  # the byte order mark: of a file, or of each that was put into one
SEPARATORS = ";\t|"  # of other programs' CSV files
SPLIT = "train"
# What JSON calls the values that are not objects.
TYPES: Mapping[type, str] = MappingProxyType(
    {str: "a string", int: "a number", float: "a number", list: "a list", bool: "a boolean", type(None): "null"}
)
SAVED = ("state.json", "dataset_dict.json")  # written by save_to_disk(), whose folders load_dataset() does not read


def read_rows(name: str) -> Iterator[NumberedRow]:
    """(number from 1, row) of a .jsonl, .csv or .parquet file, of a folder, or of `hub/id:config@split`, unchecked.

    A row of a .jsonl file has the number of its line. Raises DataError and nothing else, whatever the file holds.
    """
    try:
        yield from _rows(name)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be read: {message_of(error)}") from error


@contextmanager
def blaming(place: str) -> Iterator[None]:
    """Whatever is raised within becomes one DataError that begins with the place."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{place}: {message_of(error)}") from error


def check_unicode(text: str, what: str) -> None:
    """Raises DataError for a text that is not valid Unicode, such as half of an emoji written as `\\ud83d`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} is not valid Unicode at character {error.start + 1}: {text[error.start]!r} is half of a pair"
        ) from error


def _rows(name: str) -> Iterator[NumberedRow]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _hub_rows(name)
    if path.suffix.lower() in READERS:
        if path.exists() and not path.is_file():
            raise DataError(f"{name} is not a regular file: give a file of rows, or copy them into one")
        if not path.is_file():
            near = did_you_mean(path.name, (p.name for p in path.parent.glob("*") if p.exists()))
            raise DataError(f"there is no file {name}{near}")
        return READERS[path.suffix.lower()](path)
    if path.exists() or not HUB.fullmatch(name) or name[0] in "./~":
        known = ", ".join(READERS)
        raise DataError(
            f"cannot read {name}: files must end in {known}, and it is not the name of a data set on the hub"
        )
    return _hub_rows(name)


def _jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            with blaming(f"{path}, row {number}"):
                text = _decoded(line).lstrip(MARK)
                row = _json_row(text) if text.strip() else None
            if row is not None:
                yield number, row


def _decoded(line: bytes) -> str:
    """Raises DataError for bytes of another encoding, or of a file that lost its end."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if "\0" in text:
        raise DataError(f"byte {line.index(0)} is zero, as in UTF-16 or a damaged file; save the file as UTF-8")
    return text


def _json_row(text: str) -> Row:
    try:
        row = json.loads(text, object_pairs_hook=_json_object)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        most = sys.get_int_max_str_digits()
        raise DataError(f"a whole number has more than {most:,} digits: write it as a string") from error
    except RecursionError as error:
        raise DataError("it is nested too deeply") from error
    if not isinstance(row, dict):
        raise DataError(f"{TYPES[type(row)]}, where an object with columns is wanted")
    return row


def _json_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _check_names([name for name, _ in pairs])
    return found


def _check_names(names: Sequence[str]) -> None:
    """Raises DataError for a name that comes twice or is not valid Unicode."""
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"names a column twice: {twice!r}")
    for name in names:
        check_unicode(name, f"the name {name!r}")


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    header: list[str] | None = None
    number = 0
    for line, fields in _csv_records(path):
        if header is None:
            header = fields
            with blaming(f"{path}, line {line}"):
                _check_names(header)
                _check_separator(header)
            continue
        number += 1
        if len(fields) != len(header):
            wanted = f"not the {len(header)} fields that the header names, but {len(fields)}"
            raise DataError(f"{path}, line {line}, row {number}: {wanted}")
        yield number, dict(zip(header, fields, strict=True))


def _check_separator(header: Sequence[str]) -> None:
    """Raises DataError for a header whose names stand in one field, since something else separates them."""
    other = next((mark for mark in SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise DataError(f"the header is one field, {header[0]!r}: separate fields by commas, not by {other!r}")


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(the line that a record begins in, its fields), blank lines left out."""
    csv.field_size_limit(sys.maxsize)  # a long text is data
    with path.open("rb") as file:
        reader = csv.reader(_csv_lines(file), strict=True)
        fields: list[str] | None = []
        while fields is not None:
            line = reader.line_num + 1
            with blaming(f"{path}, line {line}"):
                fields = _csv_record(reader)
            if fields:
                yield line, fields


def _csv_record(reader: Iterator[list[str]]) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}") from error


def _csv_lines(file: io.BufferedReader) -> Iterator[str]:
    """The lines, whichever of the three line ends they have."""
    for number, line in enumerate(file, 1):
        text = _decoded(line)
        yield from io.StringIO(text.lstrip(MARK) if number == 1 else text, newline="")


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    parquet: Any = import_module("pyarrow.parquet")
    try:
        names = parquet.read_schema(path).names
        with blaming(str(path)):
            _check_names(names)
        table = parquet.read_table(path)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of many kinds
        raise DataError(f"{path} is not a valid Parquet file: {error}") from error
    for number, values in enumerate(zip(*table.columns, strict=True), 1):
        row = {}
        for name, value in zip(names, values, strict=True):
            with blaming(f"{path}, row {number}, {name}"):
                row[name] = value.as_py()
        yield number, row


def _hub_rows(name: str) -> Iterator[NumberedRow]:
    import datasets

    folder = Path(name).expanduser()
    if any((folder / file).is_file() for file in SAVED):
        yield from enumerate(_split(name, datasets.load_from_disk(str(folder))), 1)
        return

    found = HUB.fullmatch(name)
    asked = found.groupdict() if found else {"name": name, "config": None, "split": None}
    try:
        rows = datasets.load_dataset(asked["name"], asked["config"], split=asked["split"] or SPLIT)
    except Exception as error:  # the hub's client raises errors of many libraries
        cause = error.__cause__ or error  # of a file that cannot be read; the error names none
        raise DataError(f"{name} could not be loaded as a data set: {message_of(cause)}") from error
    yield from enumerate(rows, 1)


def _split(name: str, found: Any) -> Any:
    """The rows of what save_to_disk() wrote, those to train on where it has several splits."""
    if not isinstance(found, Mapping):
        return found
    if SPLIT not in found:
        raise DataError(
            f"{name} has the splits {', '.join(found)}, none of which is {SPLIT!r}: name one of its folders"
        )
    return found[SPLIT]


READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
