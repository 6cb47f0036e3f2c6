"""A file is opened only if it is a regular one of a bounded size: no pipe, no device, no link where none may be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from polyvera.errors import FormatError

MAX_FILE_BYTES = 64 << 30
BINARY = getattr(os, "O_BINARY", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer else waits for one
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: str | Path, max_bytes: int = MAX_FILE_BYTES, *, follows_links: bool = False) -> int:
    """A descriptor of the file, open for reading, which the caller closes.

    Raises FormatError for what is no regular file or has more bytes, and OSError.
    """
    links = 0 if follows_links else NO_FOLLOW
    descriptor = os.open(path, os.O_RDONLY | BINARY | NO_WAIT | links)
    try:
        check_regular(os.fstat(descriptor), max_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(found: os.stat_result, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Raises FormatError for what is no regular file or has more bytes."""
    if not stat.S_ISREG(found.st_mode):
        raise FormatError(f"it is {kind_of(found)}, not a regular file")
    if found.st_size > max_bytes:
        raise FormatError(f"it has {found.st_size:,} bytes, and at most {max_bytes:,} are read")


def read_regular(path: str | Path, max_bytes: int, *, follows_links: bool = False) -> bytes:
    """All bytes of the file. Raises as open_regular()."""
    with os.fdopen(open_regular(path, max_bytes, follows_links=follows_links), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it has grown since it was looked at
        raise FormatError(f"it has more than {max_bytes:,} bytes")
    return data


def kind_of(found: os.stat_result) -> str:
    """What else than a regular file, for people."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(found.st_mode), "a device")
