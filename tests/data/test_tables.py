import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvera.data.tables import alike, drawn, read, split, table
from polyvera.errors import DataError
from polyvera.model.message import Message

ROWS = [{"prompt": "a b", "completion": "c"}, {"prompt": 'd, "e"\nf', "completion": "ü"}]
Write = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> dict[str, str]:
    """ROWS in every form."""
    paths = {suffix: str(tmp_path / f"rows{suffix}") for suffix in (".jsonl", ".csv", ".parquet")}
    Path(paths[".jsonl"]).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with Path(paths[".csv"]).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), paths[".parquet"])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(Path(paths[".jsonl"]).read_text())
    return {**paths, "folder": str(folder)}


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet", "folder"])
def test_every_form_gives_the_same_examples(written: dict[str, str], form: str) -> None:
    table = read(written[form])
    assert table.kind == "completion"
    assert [(e.row, e.prompt, e.answer) for e in table.examples] == [(1, "a b", "c"), (2, 'd, "e"\nf', "ü")]


def test_columns_are_mapped_by_name(jsonl: Write) -> None:
    path = jsonl([{"input": "a", "output": "b", "text": "not meant", "refs": ["b", "c"]}])
    table = read(path, {"prompt": "input", "completion": "output"})
    assert (table.examples[0].prompt, table.examples[0].answer, table.examples[0].right) == ("a", "b", ("b", "c"))
    with pytest.raises(DataError, match=r"no column 'inptu'; it has .*; did you mean 'input'"):
        read(path, {"prompt": "inptu", "completion": "output"})
    with pytest.raises(DataError, match=r"'promt' must be one of: .*; did you mean 'prompt'"):
        read(path, {"promt": "input", "completion": "output"})


def test_conversations(jsonl: Write) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    example = read(jsonl([{"messages": turns}])).examples[0]
    assert (example.prompt, example.answer) == ((Message("user", "hi"),), "yo")
    table = read(jsonl(ROWS), chat=True)
    assert (table.kind, table.examples[0].prompt) == ("chat", (Message("user", "a b"),))


def test_labels_are_sorted_as_numbers_or_names(jsonl: Write) -> None:
    assert read(jsonl([{"text": "a", "label": label} for label in (10, 9, 2)])).labels == ("2", "9", "10")
    assert read(jsonl([{"text": "a", "label": label} for label in ("b", "a", "b")])).labels == ("a", "b")
    pairs = read(jsonl([{"text": "a", "text_pair": "b", "label": 0}]))
    assert pairs.examples[0].pair == "b"


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (("②", "①"), ("①", "②")),
        (("2", "--1"), ("--1", "2")),
        (("²", "3"), ("3", "²")),
        (("10", "-9", "x"), ("-9", "10", "x")),
        (("-", "1"), ("-", "1")),
        (("9" * 5000, "1"), ("1", "9" * 5000)),
        (("2", "01", "1"), ("01", "1", "2")),
        ((True, False), ("false", "true")),
        (("True", "FALSE"), ("false", "true")),
    ],
)
def test_any_text_is_a_label(jsonl: Write, given: tuple[Any, ...], labels: tuple[str, ...]) -> None:
    assert read(jsonl([{"text": "a", "label": label} for label in given])).labels == labels


def test_a_label_has_one_name_in_every_format(jsonl: Write, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    tables = [read(jsonl(rows))]
    for name, text in (("lower", "true"), ("pandas", "True"), ("excel", "TRUE")):
        (tmp_path / f"{name}.csv").write_text(f"text,label\na,{text}\nb,false\n")
        tables.append(read(tmp_path / f"{name}.csv"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    tables.append(read(tmp_path / "rows.parquet"))
    assert {table.labels for table in tables} == {("false", "true")}
    assert {table.examples[0].answer for table in tables} == {"true"}


def test_a_column_that_is_not_there_is_refused_though_another_would_do(jsonl: Write) -> None:
    rows = jsonl([{"prompt": "a", "completion": "b", "input": "c"}])
    with pytest.raises(DataError, match=r"has no column 'inputs'; it has prompt, completion, input; did you mean"):
        read(rows, {"prompt": "inputs"})
    assert read(rows, {"prompt": "input"}).examples[0].prompt == "c"


def test_the_columns_of_all_rows_decide_the_form(jsonl: Write) -> None:
    labelled = [{"text": "b", "label": "x"}, {"text": "c", "label": "y"}]
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: label is missing"):
        read(jsonl([{"text": "a"}, *labelled]))
    with pytest.raises(DataError, match="row 3: text is missing"):
        read(jsonl([*labelled, {"label": "x"}]))
    with pytest.raises(DataError, match="fit several .*, row 1 with text and row 3 with prompt, completion; name them"):
        read(jsonl([{"text": "a"}, {"text": "b"}, *ROWS]))


HALF = "w1 \ud83d"


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": HALF, "completion": "a"}, "prompt"),
        ({"prompt": "a", "completion": "\udc00"}, "completion"),
        ({"prompt": "a", "completion": "b", "refs": ["b", HALF]}, "refs"),
        ({"text": HALF}, "text"),
        ({"text": "a", "label": HALF}, "label"),
        ({"text": "a", "text_pair": HALF, "label": "b"}, "text_pair"),
        ({"messages": [{"role": "user", "content": HALF}, {"role": "assistant", "content": "a"}]}, "content"),
    ],
)
def test_half_an_emoji_is_named_by_its_row_and_column(jsonl: Write, row: dict[str, Any], column: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 1: {column} is not valid Unicode at character \d"):
        read(jsonl([row]))


def test_whatever_a_row_raises_is_the_rows_fault() -> None:
    class Hostile(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise OverflowError("no such number")

        def items(self) -> Any:
            return [("messages", Hostile())]

    rows = [(1, {"messages": Hostile()}), (2, {"messages": [Hostile()]})]
    with pytest.raises(DataError, match=r"mine, row 1: messages must .*; row 2: OverflowError: no such"):
        table("mine", rows)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no rows"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"', r"rows\.jsonl, row 2: not valid JSON"),
        (b'{"prompt": "a", "completion": "b"}\n\xff\xfe', r"row 2: not UTF-8 at byte 0"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": null, "completion": "b"}', "row 2: prompt is null"),
        (b'{"prompt": "a", "completion": "b"}\n{"completion": "b"}', "row 2: prompt is missing"),
        (b'{"prompt": "a", "completion": " "}', "row 1: completion is empty"),
        (b'{"prompt": "a", "completion": 7}', "row 1: completion is of type int, not a string"),
        (b'{"prompt": "a", "completion": "b", "refs": "b"}', "row 1: refs must be a list"),
        (b'{"prompt": "a", "completion": "b", "refs": 5}', "row 1: refs must be a list"),
        (b"[1]", "row 1: a list, where an object"),
        (b'{"question": "a", "answer": "b"}', r"columns question, answer, which fit none .*prompt \+ completion"),
        (b'{"prompt": "a", "completion": "b", "messages": []}', "fit several"),
        (b'{"text": "a", "label": {}}', "label is of type dict, not a string"),
        (b'{"text": "a", "label": null}', "row 1: label is null"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "row 1: the last turn is the user's"),
        (b'{"messages": [{"role": "usr", "content": "a"}]}', "row 1: role='usr' must be one of"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "row 1: the only turn"),
        (b'{"messages": "hello"}', "row 1: messages must be a list"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read(path)


def test_many_bad_rows_are_counted(jsonl: Write) -> None:
    with pytest.raises(DataError, match=r"row 1: .*row 5: .*; and 3 more rows"):
        read(jsonl([{"prompt": "a", "completion": ""}] * 8))


def test_split_is_disjoint_whole_and_the_same_for_a_seed(jsonl: Write) -> None:
    table = read(jsonl([{"text": f"row {i}"} for i in range(20)]))
    first, held = split(table, 0.25, seed=3)
    again, _ = split(table, 0.25, seed=3)
    other, _ = split(table, 0.25, seed=4)
    assert (len(first), len(held)) == (15, 5)
    assert {e.row for e in first.examples} | {e.row for e in held.examples} == set(range(1, 21))
    assert first == again != other
    with pytest.raises(DataError, match="leaves one side empty"):
        split(table, 0.01, seed=0)


def test_validation_must_be_like_the_data(jsonl: Write) -> None:
    table = read(jsonl([{"text": "a", "label": "cat"}, {"text": "b", "label": "dog"}], "a.jsonl"))
    fewer = read(jsonl([{"text": "a", "label": "dog"}], "b.jsonl"))
    assert alike(table, fewer).labels == ("cat", "dog")
    with pytest.raises(DataError, match="the label 'dig', which .* lacks; did you mean 'dog'"):
        alike(table, read(jsonl([{"text": "a", "label": "dig"}], "c.jsonl")))
    with pytest.raises(DataError, match=r"holds text, and .* holds text \+ label"):
        alike(table, read(jsonl([{"text": "a"}], "d.jsonl")))


def test_drawn_rows_are_the_same_for_the_same_seed_and_keep_their_order(counting):
    table = read(counting)
    some = drawn(table, 5, 3)
    assert len(some) == 5 and [e.row for e in some.examples] == sorted(e.row for e in some.examples)
    assert drawn(table, 5, 3) == some != drawn(table, 5, 4)
    assert drawn(table, 1000, 0) is table


def test_empty_columns_of_a_conversation_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "w1", "name": None}, {"role": "assistant", "content": "w2", "tool_calls": []}]
    path.write_text(json.dumps({"messages": turns, "tools": None, "documents": [], "id": 3}) + "\n")
    assert read(path).examples[0].answer == "w2"


def test_columns_that_are_not_read_are_told() -> None:
    rows = [{**ROWS[0], "id": 1, "empty": None}, {**ROWS[1], "id": 2, "source": "x", "empty": []}]
    found = table("rows", enumerate(rows, 1))
    assert found.unread_text == "rows: columns not read: id (2 rows), source (1 row)"
    assert not table("rows", enumerate([{**ROWS[0], "refs": ["c"]}], 1)).unread
    assert not table(
        "rows", enumerate([{"question": "a", "answer": "b"}], 1), {"prompt": "question", "completion": "answer"}
    ).unread
    many = table("rows", enumerate([{**ROWS[0], **{f"c{i}": i for i in range(12)}}], 1))
    assert many.unread_text.endswith("c9 (1 row) and 2 more")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["b", "a"], "rows are for label: 2 classes (a, b)"),
        (["0.5", "1.5"], "rows are for label: 2 classes (0.5, 1.5)"),  # texts, as all of a CSV file are
        ([0.5, 1.5], "rows are for regression: their labels are numbers"),
        (list("abcdef"), "rows are for label: 6 classes (a, b, c, d, e, ...)"),
    ],
)
def test_what_labels_were_taken_for_is_told(labels: list[object], text: str) -> None:
    assert table("rows", enumerate([{"text": "x", "label": label} for label in labels], 1)).head_text == text
