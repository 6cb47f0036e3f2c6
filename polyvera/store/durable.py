"""Folders and names that are on the disk when the call returns. OSErrors are the caller's to word."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # of an OSError where there is no room


def make_folder(folder: Path) -> None:
    """The folder and all above it, each durable in the one above."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def link(staged: Path, target: Path) -> bool:
    """Gives the file its name, unless the name is taken."""
    try:
        if sys.platform == "win32":
            staged.rename(target)  # exclusive there
        else:
            target.hardlink_to(staged)
    except FileExistsError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Makes the entries of a folder durable."""
    if sys.platform == "win32":
        return  # a folder cannot be opened there; NTFS journals its entries
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
