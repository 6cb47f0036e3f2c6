"""Nothing but a regular file of a bounded size is opened, and nothing is waited for."""

import os
import socket
from pathlib import Path

import pytest

from polyvera.errors import FormatError
from polyvera.store.regular_file import kind_of, open_regular, read_regular


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    assert read_regular(path, 4) == b"data"
    with pytest.raises(FormatError, match="4 bytes, and at most 3"):
        read_regular(path, 3)


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    link = tmp_path / "link"
    link.symlink_to("file")
    assert read_regular(link, 4, follows_links=True) == b"data"
    with pytest.raises(OSError):
        read_regular(link, 4)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a symbolic link"])
def test_nothing_else_is_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    make = {"a pipe": lambda: os.mkfifo(path), "a folder": path.mkdir, "a device": lambda: path.symlink_to("/dev/zero")}
    make.get(kind, lambda: path.symlink_to(tmp_path))()
    num_open = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(FormatError, match="not a regular file"):
        open_regular(path, follows_links=True)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == num_open
    assert kind_of(os.lstat(path)) == ("a symbolic link" if path.is_symlink() else kind)


def test_a_socket_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")
        assert kind_of(os.lstat("s")) == "a socket"
