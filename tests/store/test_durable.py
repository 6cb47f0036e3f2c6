"""Folders and names are made once, and never over something."""

import errno
from pathlib import Path

import pytest

from polyvera.store.durable import link, make_folder, replace_file, sync_folder


def test_a_folder_is_made_with_all_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b/c")
    make_folder(tmp_path / "a/b/c")
    sync_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b/c").is_dir()


def test_a_name_that_is_taken_is_kept(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    assert link(tmp_path / "new", tmp_path / "free") and not link(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "free").read_text() == "new" and (tmp_path / "old").read_text() == "old"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    replace_file(tmp_path / "a", b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        replace_file(tmp_path / "a", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
