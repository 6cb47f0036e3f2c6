import json
from pathlib import Path

import pytest

from polyvera.data.batching import packed
from polyvera.errors import DataError
from polyvera.train.recipe import Recipe
from polyvera.train.tell import to_nobody
from polyvera.train.tenants import only_tenant, tenants, unread_files

ROW = {"prompt": "a", "completion": "b"}


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_folder_has_a_tenant_for_each_file(tmp_path: Path) -> None:
    lines(tmp_path / "d" / "b.jsonl", [ROW])
    (tmp_path / "d" / "a.csv").write_text("prompt,completion\nx,y\n")
    (tmp_path / "d" / "notes.md").write_text("no rows")
    lines(tmp_path / "t" / "b.jsonl", [ROW, ROW])
    recipe = Recipe(model="m", data=str(tmp_path / "d"), test=str(tmp_path / "t"), fleet=True)
    first, second = tenants(recipe, to_nobody)
    assert (first.name, second.name) == ("a", "b")
    with pytest.raises(DataError, match=r"a\.csv: 'a' has no rows in test"):
        first.tables(recipe)
    found = second.tables(recipe)
    assert len(found.training) == 1 and found.test is not None and len(found.test) == 2


def test_a_column_names_the_tenant_whatever_the_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "all.jsonl", [{**ROW, "who": name, "prompt": f"p{i}"} for i, name in enumerate("abab")])
    recipe = Recipe(model="m", data=path, fleet=True, adapter_column="who")
    first, second = tenants(recipe, to_nobody)
    assert [e.prompt for e in first.tables(recipe).training.examples] == ["p0", "p2"]
    assert [e.row for e in second.tables(recipe).training.examples] == [2, 4]
    with pytest.raises(DataError, match="row 1: no adapter's name in the column 'whom'; did you mean 'who'"):
        tenants(recipe.replaced(adapter_column="whom"), to_nobody)
    odd = lines(tmp_path / "odd.jsonl", [{**ROW, "adapter": "a"}, {**ROW, "adapter": 1.5}])
    with pytest.raises(DataError, match=r"row 2: no adapter's name in the column 'adapter'; it is 1\.5"):
        tenants(Recipe(model="m", data=odd, fleet=True), to_nobody)


def test_bad_rows_of_a_common_file_are_their_tenants_alone(tmp_path: Path) -> None:
    path = lines(tmp_path / "all.jsonl", [{**ROW, "adapter": "a"}, {"prompt": "x", "adapter": "b"}])
    recipe = Recipe(model="m", data=path, fleet=True)
    first, second = tenants(recipe, to_nobody)
    assert len(first.tables(recipe).training) == 1
    with pytest.raises(DataError, match=r"\(b\)"):
        second.tables(recipe)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["only"] * 8, "all 8 rows have the label 'only': add another class"),
        ([f"{i * 0.37:.2f}" for i in range(8)], "8 classes in 8 rows"),
        (["a", "b", "c", "d", "a", "b", "e"], "5 classes in 7 rows"),
        ([[]] * 4, "none of its 4 rows has a label"),
        ([0.5] * 4, "all 4 rows have the number 0.5"),
        (["a", "a ", "b"] * 2, "the labels 'a' and 'a ' differ in spaces alone"),
        (
            ["caf\u00e9", "cafe\u0301", "b"] * 2,
            r"the labels 'cafe\\u0301' and 'caf\\xe9' differ in how accents are encoded alone",
        ),
        (
            ["caf\u00e9 noir", "cafe\u0301  noir", "b"] * 2,
            r"the labels 'cafe\\u0301  noir' and 'caf\\xe9 noir' differ in spaces and in how accents are encoded alone",
        ),
        ([[0, 1], [1, 0]] * 4, "all 8 rows have the same labels, '0', '1': add rows without some of them"),
        ([["x y"], ["x  y"]], "the labels 'x  y' and 'x y' differ in spaces alone"),
    ],
)
def test_labels_that_make_no_classification_are_refused(tmp_path: Path, labels: list[object], problem: str) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in labels])
    with pytest.raises(DataError, match=rf"rows\.jsonl.*{problem}"):
        only_tenant(Recipe(model="m", data=path)).tables(Recipe(model="m", data=path))


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 8), (3, 1)])
def test_a_text_that_is_told_from_none_is_refused(num_rows: int, batch_size: int, tmp_path: Path) -> None:
    row: dict[str, object] = {"anchor": "a", "positive": "b"}
    for is_fine, columns in ((False, row), (True, {**row, "negative": "c"})):
        path = lines(tmp_path / "rows.jsonl", [columns] * num_rows)
        recipe = Recipe(model="m", data=path, batch_size=batch_size)
        if is_fine:
            assert len(only_tenant(recipe).tables(recipe).training) == num_rows
        else:
            with pytest.raises(DataError, match=r"rows\.jsonl: a batch of one row has no other"):
                only_tenant(recipe).tables(recipe)


def test_places_without_tenants_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        tenants(Recipe(model="m", data=str(tmp_path / "empty"), fleet=True), to_nobody)
    lines(tmp_path / "d" / "a.jsonl", [ROW])
    with pytest.raises(DataError, match="adapter_column='who' would have no effect"):
        tenants(Recipe(model="m", data=str(tmp_path / "d"), fleet=True, adapter_column="who"), to_nobody)
    (tmp_path / "d" / "a.csv").write_text("prompt,completion\nx,y\n")
    with pytest.raises(DataError, match="several files named 'a'"):
        tenants(Recipe(model="m", data=str(tmp_path / "d"), fleet=True), to_nobody)


def test_packed_batches_hold_every_row_once_and_no_more_tokens_than_asked() -> None:
    lengths = [3, 50, 7, 7, 20, 1, 9, 40]
    batches = list(packed(lengths, 60))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 60 for batch in batches)
    assert [len(batch) for batch in packed(lengths, 1)] == [1] * 8
    assert list(packed([], 10)) == []


def test_what_a_folder_holds_beside_its_tenants_is_told(tmp_path: Path) -> None:
    lines(tmp_path / "A.JSONL", [ROW])
    assert [tenant.name for tenant in tenants(Recipe(model="m", data=str(tmp_path), fleet=True), to_nobody)] == ["A"]
    assert not unread_files(str(tmp_path)) and not unread_files(str(tmp_path / "A.JSONL"))
    for name in ("b.json", "notes.md", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert unread_files(str(tmp_path)) == f"{tmp_path}: not read: b.json, notes.md"


@pytest.mark.parametrize("is_folder", [True, False])
def test_rows_of_tenants_that_are_not_trained_are_told(tmp_path: Path, is_folder: bool) -> None:
    def source(name: str, *names: str) -> str:
        if not is_folder:
            return lines(tmp_path / f"{name}.jsonl", [{**ROW, "adapter": one} for one in names])
        for one in names:
            lines(tmp_path / name / f"{one}.jsonl", [ROW])
        return str(tmp_path / name)

    data, validation, test = source("d", "a"), source("v", "a", "b"), source("t", "a", "B", "C")
    told: list[str] = []
    recipe = Recipe(model="m", data=data, validation=validation, test=test, fleet=True)
    assert [tenant.name for tenant in tenants(recipe, told.append)] == ["a"]
    assert told == [
        f"{validation}: b has no rows in {data}: not read",
        f"{test}: B, C have no rows in {data}: not read",
    ]
