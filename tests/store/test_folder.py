"""A folder for other programs: whole or not at all, and over nothing else."""

import pytest

from polyvera.errors import StoreError
from polyvera.store.folder import check_free, write_folder

OWN = ("a.json", "b.bin")


def test_a_folder_is_written_whole_in_place_of_the_old_one(tmp_path):
    path = tmp_path / "deep" / "adapter"
    write_folder(path, {"a.json": b"{}", "b.bin": b"1"})
    write_folder(path, {"a.json": b"[]"})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a.json": b"[]"}
    with pytest.raises(TypeError):
        write_folder(path, {"a.json": None})
    assert [p.name for p in path.parent.iterdir()] == ["adapter"] and (path / "a.json").read_bytes() == b"[]"


def test_what_is_there_is_replaced_only_where_it_is_an_adapter_and_asked_for(tmp_path):
    check_free(tmp_path / "new", OWN, False)
    (tmp_path / "a.json").touch()
    check_free(tmp_path, OWN, True)
    with pytest.raises(StoreError, match="overwrite=True"):
        check_free(tmp_path, OWN, False)
    with pytest.raises(StoreError, match="is a file"):
        check_free(tmp_path / "a.json", OWN, True)
    (tmp_path / "mine").touch()
    with pytest.raises(StoreError, match="'mine'"):
        check_free(tmp_path, OWN, True)
