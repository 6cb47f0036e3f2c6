"""Files: what a registry asks of the place where its files lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Buffer = memoryview | bytes


Check = Callable[
    [Callable[[], bytes], int], object
]  # of a file's first bytes, read where they are asked for, and its length
NOT_REGULAR = -1  # the bytes of what is no regular file


class Files(Protocol):
    """What a registry asks of the place where its files lie. OSErrors come back as StoreErrors.

    What is no regular file, or lies behind a link, is a DamagedFileError to all that read it.
    """

    num_threads: int
    excludes_others: bool  # whether lock() keeps out other processes too

    def location(self, path: str) -> str:
        """The full path or URL, for people."""

    def names(self) -> list[str] | None:
        """What lies directly at the root, by name, or None where there is no root."""

    def read(self, path: str, check: Check | None = None) -> Buffer | None:
        """All bytes of a file, or None where there is none. check: is given its first bytes and its length before."""

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

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Nobody else is in the lock of that name meanwhile, as far as the place can see to it."""

    def replacing(self, path: str, data: bytes) -> AbstractContextManager[Callable[[], None]]:
        """Writes the data aside; what it gives puts them in place, in one step that needs no more room."""

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder, in any order; NOT_REGULAR for what is no regular file."""

    def folder(self, folder: str) -> Iterator[tuple[str, int]]:
        """The same of what lies in a folder, but for its own folders."""
