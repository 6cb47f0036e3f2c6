"""A store, a name or a beginning of names that is not there is refused by what the user gave."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from drawn_adapters import drawn
from typer.testing import CliRunner

from polyvera.adapter.method import METHODS
from polyvera.cli import app
from polyvera.errors import NotFoundError
from polyvera.store.registry import Registry

METHOD = next(iter(METHODS))
READS = {
    "get": lambda registry: registry.get("a"),
    "get a version": lambda registry: registry.get("a@1"),
    "resolve": lambda registry: registry.resolve("a"),
    "aliases": lambda registry: registry.aliases("a"),
    "alias": lambda registry: registry.alias("a", "prod", 1),
    "remove": lambda registry: registry.remove("a@1"),
    "list": lambda registry: registry.list(missing_ok=False),
    "list a beginning": lambda registry: registry.list("a", missing_ok=False),
    "verify": lambda registry: registry.verify(),
}
VERBS = (["ls"], ["ls", "a"], ["verify"], ["show", "a"], ["rm", "a@1"], ["alias", "a", "b"], ["export", "a", "out"])


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_no_store_is_named(read, opened) -> None:
    registry = opened()
    with pytest.raises(NotFoundError) as caught:
        read(registry)
    assert f"there is no store {registry.url!r}; " in str(caught.value)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_folder_of_other_things_is_not_a_store(read, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(NotFoundError, match=r"is not a store: it has no 'adapters', but notes\.txt$"):
        read(Registry(tmp_path))


def test_a_store_from_which_all_was_removed_is_a_store(opened) -> None:
    registry = opened()
    registry.put("a", drawn(METHOD))
    registry.remove("a@1")
    assert registry.list(missing_ok=False) == [] and registry.verify() == []
    with pytest.raises(NotFoundError, match="no adapter 'a' in .*it has no names"):
        registry.get("a")


def test_a_beginning_of_no_name_is_told_with_its_neighbours(opened) -> None:
    registry = opened()
    registry.put("cafe/orders", drawn(METHOD))
    assert registry.list("caffe") == []
    with pytest.raises(NotFoundError, match=r"no adapter begins with 'cafe/order2' in .*nearest are cafe/orders"):
        registry.list("cafe/order2", missing_ok=False)
    assert [ref.name for ref in registry.list("cafe/", missing_ok=False)] == ["cafe/orders"]


def test_an_empty_folder_is_an_empty_store(tmp_path: Path) -> None:
    assert Registry(tmp_path).list(missing_ok=False) == []


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
@pytest.mark.parametrize("store", ["nowhere", f"memory://{uuid4().hex}"], ids=["folder", "memory"])
def test_every_verb_names_the_store_that_is_not_there(
    words: list[str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, [*words, "--store", store])
    assert ran.exit_code == 1 and f"there is no store '{store}'" in " ".join(ran.output.split())
    assert list(tmp_path.iterdir()) == []
