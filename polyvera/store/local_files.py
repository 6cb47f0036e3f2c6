"""Where a registry's files lie: a folder, written so that a crash at any instant leaves the old state or the new.

Paths are relative to the root, joined by '/'. A file is there whole or not at all.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from polyvera.errors import DamagedFileError, FormatError, StoreError, StoreFullError, StoreUnavailableError
from polyvera.store.durable import FULL, link, make_folder, sync_folder
from polyvera.store.file_lock import exclusive
from polyvera.store.files import NOT_REGULAR, Check, Files
from polyvera.store.regular_file import check_regular, open_regular
from polyvera.store.remote_files import RemoteFiles

STAGE = ".tmp"
STALE_S = 3600.0
STAGED = re.compile(r"\d+-[0-9a-f]{32}")  # what this class writes there, and nothing else
LOCKS, NUM_LOCKS = ".locks", 64
MAX_DEPTH = 8
HEAD_BYTES = 8 * 2**20 + 8
NO_LINKS = "this file system has no hard links, without which a publish cannot be exclusive; use another"
WHY = {
    errno.ELOOP: "it is a symbolic link, which a registry does not follow",
    errno.ENOTSUP: NO_LINKS,
    errno.EPERM: f"not permitted, or {NO_LINKS}",
}


def open_files(url: str | Path, **options: Any) -> Files:
    """LocalFiles for a path or a file:// URL, RemoteFiles for any other. Raises StoreError for one that can't be."""
    text = str(url)
    if "\0" in text:
        raise StoreError(f"{text!r} names no store: no path has a zero byte in it")
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
        self.excludes_others = True
        self.num_threads = 1  # a file is read faster than two threads agree on whose turn it is
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

    def read(self, path: str, check: Check | None = None) -> memoryview | None:
        """All bytes of a file, or None where there is none. Symbolic links are refused."""
        descriptor = self.descriptor(path)
        if descriptor is None:
            return None
        try:
            with io.FileIO(descriptor) as file:
                num_bytes = os.fstat(descriptor).st_size
                if check is not None:
                    check(lambda: os.pread(descriptor, min(num_bytes, HEAD_BYTES), 0), num_bytes)
                return _whole(file, num_bytes)
        except OSError as error:
            raise self._failed("read", path, error) from error

    def descriptor(self, path: str) -> int | None:
        """A regular file open for reading, which the caller closes, or None. Symbolic links are refused."""
        self._refuse_links(path)
        try:
            return open_regular(self._prefix + path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except FormatError as error:
            raise DamagedFileError(str(error)) from None
        except OSError as error:
            raise self._failed("read", path, error) from error

    def size(self, path: str) -> int | None:
        """The bytes of a file, or None where there is none."""
        self._refuse_links(path)
        try:
            found = os.lstat(self.location(path))
            check_regular(found)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except FormatError as error:
            raise DamagedFileError(str(error)) from None
        except OSError as error:
            raise self._failed("read", path, error) from error
        return found.st_size

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
        with self.replacing(path, data) as put:
            put()

    @contextmanager
    def replacing(self, path: str, data: bytes) -> Iterator[Callable[[], None]]:
        """Writes the data aside; what it gives puts them in place, in one step that needs no more room."""
        target = self._target(path)
        staged = self._staged(data)

        def put() -> None:
            try:
                staged.replace(target)
                self._sync_up(path)
            except OSError as error:
                raise self._failed("write", path, error) from error

        try:
            self._folder_of(target)
            yield put
        finally:
            staged.unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Nobody else of this machine, and of others where the file system locks, is in it meanwhile."""
        try:
            make_folder(self.root / LOCKS)
            held = exclusive(self.root / LOCKS / f"{sum(name.encode()) % NUM_LOCKS:02d}")
        except OSError as error:
            raise self._failed("lock", LOCKS, error) from error
        with held:
            yield

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
        """(path, bytes) of every file below a folder; symbolic links are not followed."""
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) and path.count("/") < MAX_DEPTH:
                yield from self.walk(path)
            else:
                yield from self._sized(path, entry)

    def folder(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the files in a folder."""
        for entry in self._entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                yield from self._sized(f"{folder}/{entry.name}", entry)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        self._refuse_links(f"{folder}/")
        try:
            with os.scandir(self.location(folder)) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._failed("list", folder, error) from error

    def _sized(self, path: str, entry: os.DirEntry[str]) -> Iterator[tuple[str, int]]:
        with suppress(FileNotFoundError):  # deleted since it was listed
            found = entry.stat(follow_symlinks=False)
            yield path, found.st_size if stat.S_ISREG(found.st_mode) else NOT_REGULAR

    def _staged(self, data: bytes) -> Path:
        """The data on the disk under a name of its own; nothing where that fails."""
        stage = self.root / STAGE
        staged = stage / f"{os.getpid()}-{uuid4().hex}"
        try:
            make_folder(stage)
            self._sweep(stage)
            with staged.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._failed("write", STAGE, error) from error
            raise
        return staged

    def _claimed(self, staged: Path, path: str) -> bool:
        target = self._target(path)
        try:
            make_folder(target.parent)
            if not link(staged, target):
                return False
        except OSError as error:
            raise self._failed("publish", path, error) from error
        try:
            self._sync_up(path)
        except OSError as error:  # it may be gone after a crash: it was not published
            with suppress(OSError):
                target.unlink()
            raise self._failed("publish", path, error) from error
        return True

    def _folder_of(self, target: Path) -> None:
        try:
            make_folder(target.parent)
        except OSError as error:
            raise self._failed("write", target.name, error) from error

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
            raise DamagedFileError(
                f"a folder on the way, {folder}, is a symbolic link, which a registry does not follow"
            )
        if not stat.S_ISDIR(mode):
            return  # what is to be opened there says so
        self._plain.add(folder)

    def _sync_up(self, path: str) -> None:
        """Makes the entry of a file durable, and those of the folders that it lies in."""
        folder = (self.root / path).parent
        while folder != self.root:
            sync_folder(folder)
            folder = folder.parent
        sync_folder(self.root)

    def _sweep(self, stage: Path) -> None:
        """Removes what a crash left behind long ago."""
        for left in stage.iterdir():
            with suppress(OSError):
                if STAGED.fullmatch(left.name) and time.time() - left.lstat().st_mtime > STALE_S:
                    left.unlink()

    def _failed(self, verb: str, path: str, error: OSError) -> StoreError | DamagedFileError:
        why = WHY.get(error.errno or 0, error.strerror or str(error))
        if error.errno == errno.ELOOP:
            return DamagedFileError(f"{path}: {why}")
        known = error.errno in (errno.ENOTSUP, errno.EPERM)
        kind = StoreFullError if error.errno in FULL else StoreError if known else StoreUnavailableError
        return kind(f"cannot {verb} {self.location(path)}: {why}")


def _whole(file: io.FileIO, num_bytes: int) -> memoryview:
    # numpy's memory is not filled with zeros first, as a bytearray is
    view, done = memoryview(np.empty(num_bytes, np.uint8).data), 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    return view[:done]
