"""row_files: whatever is wrong with a file, one message names the place."""

import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyvera.data.row_files import blaming, check_unicode, read_rows
from polyvera.errors import DataError

GOOD = b'{"prompt": "a", "completion": "b"}\n'
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": ' + DEEP + b"}", "it is nested too deeply"),
        (b'{"prompt": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "it is nested too deeply"),
        (DEEP, "it is nested too deeply"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "a whole number has more than 4,300 digits"),
        ('{"prompt": "a"}'.encode("utf-16-le"), "byte 1 is zero, as in UTF-16"),
        (b'{"prompt": "a"', "not valid JSON: .* at column"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        (b'{"prompt": "\xed\xa0\xbd"}', "not UTF-8 at byte"),
        (b"7", "a number, where an object"),
        (b"1.5", "a number, where an object"),
        (b'"x"', "a string, where an object"),
        (b"[{}]", "a list, where an object"),
        (b"true", "a boolean, where an object"),
        (b"null", "null, where an object"),
        (b'{"prompt": "a", "prompt": "c", "completion": "b"}', "names a column twice: 'prompt'"),
        (b'{"messages": [{"role": "user", "content": "a", "role": "tool"}]}', "names a column twice: 'role'"),
        (b'{"\\ud83d": "a"}', r"the name '\\ud83d' is not valid Unicode at character 1"),
    ],
)
def test_whatever_a_line_raises_names_its_row(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 3: {problem}") as caught:
        list(read_rows(str(path)))
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_has_any_line_ends_and_long_fields(tmp_path: Path, end: str) -> None:
    path, long = tmp_path / "rows.csv", "w1 " * 60_000
    lines = ["prompt,completion", f"{long},b", "", '"two' + end + 'lines",c', ""]
    path.write_bytes(2 * b"\xef\xbb\xbf" + end.join(lines).encode())
    assert [(number, row["prompt"]) for number, row in read_rows(str(path))] == [(1, long), (2, f"two{end}lines")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"prompt,completion\na,b\na,b,c\n", "line 3, row 2: not the 2 fields .* but 3"),
        (b'prompt,completion\n"a\nb",c\n\nd\n', "line 5, row 2: not the 2 fields .* but 1"),
        (b"prompt,prompt\na,b\n", "line 1: names a column twice: 'prompt'"),
        (b'prompt,completion\na,b\nc,"d\ne,f\n', "line 3: not valid CSV: unexpected end of data"),
        (b'prompt,completion\na,b\rc,"d"e\r', "line 3: not valid CSV"),
        (b"prompt,completion\na,b\n\xff,c\n", "line 3: not UTF-8 at byte 0"),
        (b"prompt;completion\na;b\n", "line 1: the header is one field, 'prompt;completion': .* commas, not by ';'"),
        (b"prompt\tcompletion\na\tb\n", "line 1: the header is one field, .* commas, not by"),
    ],
)
def test_bad_csv_is_named_by_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows\.csv, {problem}"):
        list(read_rows(str(path)))


def test_bad_parquet_is_named_by_its_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers())
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": texts}), path)
    with pytest.raises(DataError, match=r"rows\.parquet, row 2, completion: UnicodeDecodeError"):
        list(read_rows(str(path)))
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(DataError, match=r"rows\.parquet"):
        list(read_rows(str(path)))


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = [{"text": "w1"}, {"text": "w2"}]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "several")
    for place in ("one", "several", "several/train"):
        assert list(read_rows(str(tmp_path / place))) == list(enumerate(rows, 1))
    assert [row for _, row in read_rows(str(tmp_path / "several" / "test"))] == rows[:1]
    datasets.DatasetDict(dev=saved).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="has the splits dev"):
        list(read_rows(str(tmp_path / "other")))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"there is no file .*; did you mean 'rows\.jsonl'"):
        list(read_rows(str(tmp_path / "row.jsonl")))
    with pytest.raises(DataError, match=r"files must end in \.jsonl, \.csv, \.parquet"):
        list(read_rows("./rows.txt"))
    for rows in (b"{bad", b'{"text": "a"}\n{bad'):
        (tmp_path / "rows.jsonl").write_bytes(rows)
        with pytest.raises(DataError, match="could not be loaded as a data set: .*JSON"):
            list(read_rows(str(tmp_path)))
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet: names a column twice: 'text'"):
        list(read_rows(str(tmp_path / "twice.parquet")))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="is not a valid Parquet file"):
        list(read_rows(str(tmp_path / "bad.parquet")))


def test_a_link_to_nothing_is_not_proposed_as_itself(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to("gone")
    with pytest.raises(DataError, match=r"there is no file .*link\.jsonl$"):
        list(read_rows(str(tmp_path / "link.jsonl")))


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loop.jsonl"
    path.write_bytes(json.dumps({"text": "a"}).encode())

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"loop\.jsonl cannot be read: PermissionError"):
        list(read_rows(str(path)))


def test_blame_begins_with_the_place() -> None:
    with pytest.raises(DataError, match=r"^here: KeyError: 'a'$"), blaming("here"):
        raise KeyError("a")
    with pytest.raises(DataError, match=r"^here: ours$"), blaming("here"):
        raise DataError("ours")
    check_unicode("\U0001f600", "text")


def test_the_end_of_a_files_name_may_be_of_large_letters(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.CSV"
    path.write_text("text\na;b\n")
    assert [row for _, row in read_rows(str(path))] == [{"text": "a;b"}]


def test_a_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl is not a regular file"):
        list(read_rows(str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(
    ("row", "words"), [("null", "null, where an object"), ("[]", "a list, where"), ("[" * 3000, "nested too deeply")]
)
def test_a_row_that_is_no_object_is_told_in_words_of_json(tmp_path, row, words):
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=words) as refused:
        list(read_rows(str(tmp_path / "rows.jsonl")))
    assert "NoneType" not in str(refused.value) and "Recursion" not in str(refused.value)
