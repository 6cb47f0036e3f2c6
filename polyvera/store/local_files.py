"""Where a registry's files lie: a folder, written so that a crash at any instant leaves the old state or the new.

Paths are relative to the root, joined by '/'. A file is there whole or not at all.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from polyvera.errors import StoreError
from polyvera.store.remote_files import RemoteFiles

STAGE = ".tmp"
STALE_S = 3600.0
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
NO_LINKS = "this file system has no hard links, without which a publish cannot be exclusive; use another"
WHY = {
    errno.ELOOP: "it is a symbolic link, which a registry does not follow",
    errno.ENOTSUP: NO_LINKS,
    errno.EPERM: f"not permitted, or {NO_LINKS}",
}

Buffer = memoryview | bytes


class Files(Protocol):
    """What a registry asks of the place where its files lie. OSErrors come back as StoreErrors."""

    num_threads: int

    def location(self, path: str) -> str:
        """The full path or URL, for people."""

    def names(self) -> list[str] | None:
        """What lies directly at the root, by name, or None where there is no root."""

    def read(self, path: str) -> Buffer | None:
        """All bytes of a file, or None where there is none."""

    def descriptor(self, path: str) -> int | None:
        """A file of this machine, open for reading, or None; the caller closes it."""

    def size(self, path: str) -> int | None:
        """The bytes of a file, or None where there is none."""

    def create(self, data: bytes, paths: Iterable[str]) -> str:
        """Writes the data to the first of the paths at which nothing is, and returns it. Never overwrites."""

    def replace(self, path: str, data: bytes) -> None:
        """Writes the data to the path, over what is there."""

    def delete(self, path: str) -> None:
        """Removes a file; no error where there is none."""

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder, in any order."""

    def folder(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the files in a folder, not of those below its own folders."""


def open_files(url: str | Path, **options: Any) -> Files:
    """LocalFiles for a path or a file:// URL, RemoteFiles for any other. Raises StoreError for one that can't be."""
    text = str(url)
    scheme, found, rest = text.partition("://")
    if found and scheme not in ("file", "local"):
        return RemoteFiles(text, **options)
    if options:
        raise StoreError(f"{text} is a local folder, which takes no options; {', '.join(options)} was given")
    return LocalFiles(Path(rest if found else text))


class LocalFiles:
    """A folder. What create(), replace() or delete() has returned from is on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self._prefix = f"{self.root}/"
        self.num_threads = 1  # a file is read faster than two threads agree on whose turn it is
        self._swept = False
        self._plain: set[str] = set()  # folders known to be no links

    def location(self, path: str) -> str:
        """The absolute path."""
        return self._prefix + path

    def names(self) -> list[str] | None:
        """What lies in the folder, or None where there is none."""
        try:
            return sorted(path.name for path in self.root.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("list", "", error) from error

    def read(self, path: str) -> memoryview | None:
        """All bytes of a file, or None where there is none. Symbolic links are refused."""
        descriptor = self.descriptor(path)
        if descriptor is None:
            return None
        try:
            with io.FileIO(descriptor) as file:
                return _whole(file)
        except OSError as error:
            raise self._failed("read", path, error) from error

    def descriptor(self, path: str) -> int | None:
        """A file open for reading, which the caller closes, or None where there is none. Symbolic links are refused."""
        self._refuse_links(path)
        try:
            return os.open(self._prefix + path, os.O_RDONLY | NO_FOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("read", path, error) from error

    def size(self, path: str) -> int | None:
        """The bytes of a file, or None where there is none."""
        self._refuse_links(path)
        try:
            return os.lstat(self.location(path)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("read", path, error) from error

    def create(self, data: bytes, paths: Iterable[str]) -> str:
        """Writes the data to the first of the paths at which nothing is, and returns it.

        Staged aside, then linked, which never overwrites. Raises StoreError on a file system without hard links.
        """
        staged = self._staged(data)
        try:
            for path in paths:
                if self._claimed(staged, path):
                    return path
        finally:
            staged.unlink(missing_ok=True)
        raise StoreError(f"no free path was left for a file of {len(data)} bytes in {self.root}")

    def replace(self, path: str, data: bytes) -> None:
        """Writes the data to the path in one step, over what is there."""
        target = self._target(path)
        staged = self._staged(data)
        try:
            _make(target.parent)
            staged.replace(target)
            self._sync_up(path)
        except OSError as error:
            staged.unlink(missing_ok=True)
            raise self._failed("write", path, error) from error

    def delete(self, path: str) -> None:
        """Removes a file; no error where there is none."""
        try:
            self._target(path).unlink()
            self._sync_up(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("delete", path, error) from error

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder; symbolic links are files here, and are not followed."""
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self.walk(path)
            else:
                yield from self._sized(path, entry)

    def folder(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the files in a folder."""
        for entry in self._entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                yield from self._sized(f"{folder}/{entry.name}", entry)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.location(folder)) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._failed("list", folder, error) from error

    def _sized(self, path: str, entry: os.DirEntry[str]) -> Iterator[tuple[str, int]]:
        with suppress(FileNotFoundError):  # deleted since it was listed
            yield path, entry.stat(follow_symlinks=False).st_size

    def _staged(self, data: bytes) -> Path:
        """The data on the disk under a name of its own."""
        stage = self.root / STAGE
        try:
            _make(stage)
            self._sweep(stage)
            staged = stage / f"{os.getpid()}-{uuid4().hex}"
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed("write", STAGE, error) from error
        return staged

    def _claimed(self, staged: Path, path: str) -> bool:
        try:
            _make(self._target(path).parent)
            if not _linked(staged, self._target(path)):
                return False
            self._sync_up(path)
        except OSError as error:
            raise self._failed("publish", path, error) from error
        return True

    def _target(self, path: str) -> Path:
        self._refuse_links(path)
        return self.root / path

    def _refuse_links(self, path: str) -> None:
        """Raises StoreError where a folder on the way is a symbolic link, which may lead out of the root."""
        folder = path.rpartition("/")[0]
        if not folder or folder in self._plain:
            return
        self._refuse_links(folder)
        try:
            mode = os.lstat(self.location(folder)).st_mode
        except OSError:
            return  # nothing there yet
        if stat.S_ISLNK(mode):
            raise StoreError(f"{self.location(folder)} is a symbolic link, which a registry does not follow")
        self._plain.add(folder)

    def _sync_up(self, path: str) -> None:
        """Makes the entry of a file durable, and those of the folders that it lies in."""
        folder = (self.root / path).parent
        while folder != self.root:
            _sync(folder)
            folder = folder.parent
        _sync(self.root)

    def _sweep(self, stage: Path) -> None:
        """Once in the life of this object: removes what a crash left behind long ago."""
        if self._swept:
            return
        self._swept = True
        for left in stage.iterdir():
            with suppress(OSError):
                if time.time() - left.stat(follow_symlinks=False).st_mtime > STALE_S:
                    left.unlink()

    def _failed(self, verb: str, path: str, error: OSError) -> StoreError:
        why = WHY.get(error.errno or 0, error.strerror or str(error))
        return StoreError(f"cannot {verb} {self.location(path)}: {why}")


def _whole(file: io.FileIO) -> memoryview:
    # numpy's memory is not filled with zeros first, as a bytearray is
    view, done = memoryview(np.empty(os.fstat(file.fileno()).st_size, np.uint8).data), 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    return view[:done]


def _make(folder: Path) -> None:
    """The folder and all above it, each durable in the one above."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _linked(staged: Path, target: Path) -> bool:
    """Gives the file its name, unless the name is taken."""
    try:
        if sys.platform == "win32":
            staged.rename(target)  # exclusive there
        else:
            target.hardlink_to(staged)
    except FileExistsError:
        return False
    return True


def _sync(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there; NTFS journals its entries
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
