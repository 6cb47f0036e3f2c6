"""A registry's files on any file system of fsspec: s3://, gs://, memory:// and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any

import fsspec

from polyvera.errors import StoreError, StoreUnavailableError
from polyvera.store.files import Check

NUM_THREADS = 16  # a read waits for the network, not for a core


class RemoteFiles:
    """Files below a URL of fsspec. A write is as atomic, and create() as exclusive, as the file system makes them.

    On S3 and Google Cloud Storage one request creates a file or refuses. Other file systems look first and then write,
    so two publishers of the same name must take turns. lock() is of this process alone. Raises StoreError for a URL
    that cannot be opened.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(url, **options)
        except (ValueError, ImportError) as error:
            raise StoreError(f"cannot open {url}: {error}") from error
        self.root = str(root).rstrip("/")
        self.num_threads, self.excludes_others = NUM_THREADS, False
        self._lock = RLock()

    def location(self, path: str) -> str:
        """The URL."""
        return str(self.fs.unstrip_protocol(f"{self.root}/{path}"))

    def names(self) -> list[str] | None:
        """What lies directly below the URL, or None where nothing does."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.root, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed("list", "", error) from error
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def read(self, path: str, check: Check | None = None) -> bytes | None:
        """All bytes of a file, or None where there is none."""
        try:
            data: bytes = self.fs.cat_file(f"{self.root}/{path}")
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._failed("read", path, error) from error
        return data

    def descriptor(self, path: str) -> None:
        """None: these are not files of this machine."""

    def size(self, path: str) -> int | None:
        """The bytes of a file, or None where there is none."""
        self.fs.invalidate_cache()  # another process may have published since
        try:
            info = self.fs.info(f"{self.root}/{path}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", path, error) from error
        return int(info["size"]) if info["type"] == "file" else None

    def create(self, data: bytes, paths: Iterable[str]) -> str:
        """Writes the data to the first of the paths that is free, and returns that path. Raises StoreError."""
        for path in paths:
            try:
                self._write(path, data, "create")
            except FileExistsError:
                continue
            return path
        raise StoreError(f"no free path was left for a file of {len(data)} bytes in {self.location('')}")

    def replace(self, path: str, data: bytes) -> None:
        """Writes the data to the path, over what is there."""
        self._write(path, data, "overwrite")

    @contextmanager
    def replacing(self, path: str, data: bytes) -> Iterator[Callable[[], None]]:
        """What it gives writes the data to the path."""
        yield lambda: self.replace(path, data)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Nobody else of this process is in it meanwhile."""
        return self._lock  # type: ignore[return-value]

    def delete(self, path: str) -> None:
        """Removes a file; no error where there is none."""
        try:
            self.fs.rm_file(f"{self.root}/{path}")
        except FileNotFoundError:
            return
        except (OSError, NotImplementedError) as error:
            raise self._failed("delete", path, error) from error

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder."""
        return self._listed(folder, None)

    def folder(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the files in a folder."""
        return self._listed(folder, 1)

    def _listed(self, folder: str, depth: int | None) -> Iterator[tuple[str, int]]:
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(f"{self.root}/{folder}", maxdepth=depth, detail=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("list", folder, error) from error
        prefix = self.fs._strip_protocol(f"{self.root}/{folder}") + "/"
        for path, info in found.items():
            if info and path.startswith(prefix):
                yield f"{folder}/{path[len(prefix) :]}", int(info["size"])

    def _write(self, path: str, data: bytes, mode: str) -> None:
        full = f"{self.root}/{path}"
        try:
            try:
                self.fs.pipe_file(full, data, mode=mode)
            except FileNotFoundError:  # a file system with real folders
                self.fs.makedirs(full.rpartition("/")[0], exist_ok=True)
                self.fs.pipe_file(full, data, mode=mode)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError) as error:
            raise self._failed("write", path, error) from error

    def _failed(self, verb: str, path: str, error: Exception) -> StoreError:
        return StoreUnavailableError(f"cannot {verb} {self.location(path)}: {str(error) or type(error).__name__}")
