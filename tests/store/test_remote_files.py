"""Files below a URL: read, made where nothing is, replaced, listed, and removed; a failure names the place."""

from uuid import uuid4

import pytest

from polyvera.errors import StoreError
from polyvera.store.remote_files import RemoteFiles


@pytest.fixture(params=["memory", "folder"])
def files(request, tmp_path):
    return RemoteFiles(f"memory://{uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}")


def test_a_file_is_what_was_written(files):
    assert files.read("a/b") is None and files.size("a/b") is None
    files.replace("a/b", b"one")
    files.replace("a/b", b"three")
    assert files.read("a/b") == b"three" and files.size("a/b") == 5
    assert files.read("a") is None and files.size("a") is None, "a folder is no file"
    files.delete("a/b")
    files.delete("a/b")
    assert files.read("a/b") is None


def test_the_first_free_path_is_taken(files):
    assert files.create(b"x", ["n/1", "n/2"]) == "n/1"
    assert files.create(b"y", ["n/1", "n/2"]) == "n/2"
    assert (files.read("n/1"), files.read("n/2")) == (b"x", b"y")
    with pytest.raises(StoreError, match="no free path"):
        files.create(b"z", ["n/1", "n/2"])


def test_files_are_listed_with_their_sizes(files):
    for path, size in (("n/1", 1), ("n/deep/2", 2), ("nn/3", 3)):
        files.replace(path, b"x" * size)
    assert sorted(files.walk("n")) == [("n/1", 1), ("n/deep/2", 2)]
    assert list(files.folder("n")) == [("n/1", 1)]
    assert list(files.walk("nowhere")) == []


def test_a_failure_names_the_verb_and_the_place(files, monkeypatch):
    def broken(*given, **named):
        raise PermissionError("not yours")

    for name in ("cat_file", "info", "pipe_file", "rm_file", "find"):
        monkeypatch.setattr(files.fs, name, broken)
    calls = {
        "read": lambda: files.read("a/b"),
        "write": lambda: files.replace("a/b", b""),
        "delete": lambda: files.delete("a/b"),
        "list": lambda: list(files.walk("a/b")),
    }
    for verb, call in calls.items():
        with pytest.raises(StoreError, match=f"cannot {verb} .*a/b: not yours"):
            call()


def test_an_unknown_scheme_is_told():
    with pytest.raises(StoreError, match="nothing://x"):
        RemoteFiles("nothing://x")
