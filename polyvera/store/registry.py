"""Registry: adapters by name and version. A publish is one atomic, durable step; a version never changes.

A removed version leaves a marker in its place. store/paths.py says where each file lies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import agrees, check_fingerprint
from polyvera.errors import (
    ConflictError,
    DamagedFileError,
    NotFoundError,
    PolyveraError,
    SlotError,
    StoreError,
)
from polyvera.store.file.codec import Buffer, Header, check_digest, decode, encode, read_header
from polyvera.store.file.packed_bits import Numbers
from polyvera.store.file.read_into import fill
from polyvera.store.local_files import open_files
from polyvera.store.paths import ADAPTERS, ALIASES, BASES, adapter_path, alias_path, parse_adapter, parse_alias
from polyvera.store.reference import MAX_VERSION, AdapterRef, check_alias, check_name, check_version, parse_reference
from polyvera.store.stored_versions import REMOVED, Refs, StoredVersions, check_head, shown

if TYPE_CHECKING:
    from polyvera.adapter.bank import Bank
    from polyvera.adapter.spec import AdapterSpec

MAX_RACES = 10_000
PLACES = (ADAPTERS, ALIASES, BASES)

Which = AdapterRef | str
Item = TypeVar("Item")
# Registry has a method called list, so its annotations cannot say list[...].
Adapters = list[Adapter]
Slots = list[int]
Aliases = list[str]


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file of a registry that is not as it must be, and why."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


DamagedFiles = list[DamagedFile]


class Registry:
    """Adapters by name and version, in a folder or at a URL. Any number of threads and processes may use it.

    root: a folder, or a URL of fsspec such as s3://bucket/adapters; created by the first put().
    options: of the file system at that URL, as fsspec takes them.
    bases: the made bases that adapters name.

    Raises StoreError for a URL that cannot be opened.
    """

    def __init__(self, url: str | Path, **options: Any) -> None:
        self.url = str(url)
        self.files = open_files(url, **options)
        self._stored = StoredVersions(self.url, self.files)
        self.bases = self._stored.bases

    def put(self, name: str, adapter: Adapter, *, alias: str | None = None, dtype: str = "float32") -> AdapterRef:
        """Publishes an adapter as the next version of a name; returns its reference once it is durable.

        name: such as 'team/task'. alias: is pointed at the new version. dtype: of the stored numbers: 'float32',
        'bfloat16', 'int8', 'int4' or 'int3'.

        Raises ReferenceNameError, FormatError for an adapter with NaN or inf, StoreError if it cannot be written.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        data = encode(adapter, dtype)
        self.bases.keep(adapter)
        with self.files.lock(name):
            first = max(self._stored.published(name), default=0) + 1
            if first > MAX_VERSION:
                raise StoreError(f"the version numbers of {name!r} are used up: publish under another name")
            numbers = range(first, min(first + MAX_RACES, MAX_VERSION + 1))
            version = parse_adapter(path := self.files.create(data, (adapter_path(name, v) for v in numbers)))[1]
            self.bases.keep(adapter)  # again: another may have removed it since
            if alias is not None:
                self._point(name, alias, version)
        return AdapterRef(name, version, self.files.location(path), len(data), read_header(data).own.digest)

    def get(self, which: Which) -> Adapter:
        """An adapter, after a check of every byte of its file.

        which: 'name' (the latest), 'name@3', 'name@alias', or an AdapterRef. Raises NotFoundError, FormatError.
        """
        return self._stored.read(self._ref(which))

    def read_file(self, which: Which) -> bytes:
        """The bytes of a version's file, after a check of each. Raises as get()."""
        return self._stored.read_file(self._ref(which))

    def header(self, which: Which) -> Header:
        """What the file of an adapter says of it, the dtype of its numbers and the error that this made among it.

        Raises as get().
        """
        return self._stored.header(self._ref(which))

    def get_all(self, which: Iterable[Which]) -> Adapters:
        """Several adapters, read by several threads. Raises as get()."""
        asked = list(which)
        found: dict[int, Adapter] = {}
        self._each(asked, lambda i, one: found.__setitem__(i, self.get(one)))
        return [found[i] for i in range(len(asked))]

    def load_into(
        self, bank: Bank, which: Iterable[Which], slots: Sequence[int] | None = None, base: str = ""
    ) -> Slots:
        """Loads adapters into slots of a bank, read and checked by several threads; returns their slots.

        slots: one for each adapter; by default the bank's from its first. base: the fingerprint of the bank's model, ''
        to load adapters of any. Raises as get() and Bank.put() do; slots loaded before the error stay loaded.
        """
        asked = list(which)
        slots = list(bank.slots)[: len(asked)] if slots is None else slots
        if len(slots) != len(asked):
            raise SlotError(f"{len(asked)} adapters for {len(slots)} slots; give as many slots, or make a larger bank")
        lock, rows = Lock(), bank.memory()

        def load(i: int, one: Which) -> None:
            ref = self._ref(one)
            row = bank.empty_row(slots[i], rows)
            spec = None if row is None else self._filled(row, bank, ref, base)
            if spec is not None:
                with lock:
                    return bank.settle(slots[i], spec)
            adapter = self._stored.read(ref)
            check_fingerprint(adapter.base, base)
            with lock:
                return bank.put(slots[i], adapter)

        self._each(asked, load)
        return list(slots)

    def resolve(self, which: str) -> AdapterRef:
        """`name` (the latest version), `name@latest`, `name@3` or `name@alias`.

        Raises NotFoundError, ReferenceNameError, DamagedFileError.
        """
        return self._stored.resolve(which)

    def list(self, prefix: str | None = None, *, latest: bool = False, missing_ok: bool = True) -> Refs:
        """Every version, or only the latest of each name, by name and version; names that begin with the prefix.

        missing_ok=False: raises NotFoundError where there is no store, or no name begins so.
        """
        return self._stored.list(prefix, latest=latest, missing_ok=missing_ok)

    def aliases(self, name: str) -> Mapping[str, int]:
        """The version of each alias of a name, damaged ones left out; verify() names those.

        Raises NotFoundError for a name that nobody published.
        """
        return self._stored.aliases(name)

    def check_exists(self) -> None:
        """Raises NotFoundError where nothing was published yet, or the place holds something else than a store."""
        self._stored.check_exists()

    def remove(self, which: Which, *, with_aliases: bool = False) -> None:
        """Removes one version, `name@3`; its number is never given out again, and its bytes are gone.

        Raises StoreError where an alias points to it (with_aliases removes those too), or where no version is named.
        """
        ref = self._ref(which) if isinstance(which, AdapterRef) else self._named(which)
        with suppress(DamagedFileError):  # which can be removed
            self._stored.exact(ref.name, ref.version)
        path = adapter_path(ref.name, ref.version)
        with self.files.lock(ref.name):
            pointing = self._pointing(ref, with_aliases)
            before = None if self.files.excludes_others or with_aliases else self.files.read(path)
            with self.files.replacing(path, REMOVED) as put:
                self._delete_aliases(ref.name, pointing)
                put()
            if not self.files.excludes_others:
                self._look_again(ref, with_aliases, before)

    def alias(self, name: str, alias: str, version: int) -> AdapterRef:
        """Points an alias at a version, atomically. Raises NotFoundError, ReferenceNameError."""
        check_alias(alias)
        self._stored.exact(check_name(name), check_version(version))
        with self.files.lock(name):
            ref = self._stored.exact(name, version)
            before = self.aliases(name).get(alias)
            self._write_alias(name, alias, version)
            if not self.files.excludes_others:
                self._check_still_there(ref, alias, before)
        return ref

    def unalias(self, name: str, alias: str) -> None:
        """Removes an alias; the version stays. Raises NotFoundError."""
        path = alias_path(check_name(name), check_alias(alias))
        with suppress(DamagedFileError):
            self._stored.alias(name, alias)
        with self.files.lock(name):
            self.files.delete(path)

    def verify(self) -> DamagedFiles:
        """Reads and checks every file, by several threads; the problems found, by path, none where all is well.

        Raises NotFoundError where there is no store.
        """
        self.check_exists()
        problems: DamagedFiles = []

        def check(_: int, item: tuple[str, int]) -> None:
            try:
                self._check(item[0])
            except PolyveraError as error:
                problems.append(DamagedFile(item[0], str(error)))

        num_threads = max(self.files.num_threads, os.cpu_count() or 1)  # sha256 leaves the others their turn
        self._each([item for folder in PLACES for item in self.files.walk(folder)], check, num_threads)
        return sorted(problems, key=lambda problem: problem.path)

    def _check(self, path: str) -> object:
        name, version = parse_adapter(path)
        if version:
            data = self.files.read(path, check_head)
            if data is not None and data != REMOVED:
                self.bases.attached(decode(data))
                check_digest(data)
            return None
        if path.startswith(f"{BASES}/"):
            return self.bases.check(path)
        name, alias = parse_alias(path)
        if not alias:
            raise StoreError("this file does not belong to a registry; move it elsewhere")
        return self._stored.exact(name, self._stored.alias(name, alias))

    def _ref(self, which: Which) -> AdapterRef:
        if isinstance(which, str):
            return self.resolve(which)
        check_name(which.name)
        check_version(which.version)
        return which

    def _named(self, which: str) -> AdapterRef:
        reference = parse_reference(which)
        if reference.version is None:
            raise StoreError(f"{which!r} names no version; say which one to remove, such as '{reference.name}@3'")
        return AdapterRef(reference.name, reference.version, "", 0)

    def _write_alias(self, name: str, alias: str, version: int) -> None:
        self.files.replace(alias_path(name, alias), f"{version}\n".encode())

    def _pointing(self, ref: AdapterRef, with_aliases: bool) -> Aliases:
        """The aliases that point to a version. Raises ConflictError where there are any that are to stay."""
        pointing = [alias for alias, version in self.aliases(ref.name).items() if version == ref.version]
        if pointing and not with_aliases:
            raise ConflictError(
                f"{ref} is not removed, since the alias {shown(pointing)} points to it: point the alias elsewhere, "
                "or remove it too, with_aliases=true"
            )
        return pointing

    def _delete_aliases(self, name: str, aliases: Iterable[str]) -> None:
        for alias in aliases:
            self.files.delete(alias_path(name, alias))

    def _look_again(self, ref: AdapterRef, with_aliases: bool, before: Buffer | None) -> None:
        """Takes a removal back where another process has pointed an alias to the version since it was looked at."""
        try:
            self._delete_aliases(ref.name, self._pointing(ref, with_aliases))
        except ConflictError:
            if before is not None:
                self.files.replace(adapter_path(ref.name, ref.version), bytes(before))
            raise

    def _check_still_there(self, ref: AdapterRef, alias: str, before: int | None) -> None:
        """Of two processes, one that points an alias and one that removes its version, the later one sees the other."""
        try:
            self._stored.exact(ref.name, ref.version)
        except NotFoundError:
            if before in (None, ref.version):
                self.files.delete(alias_path(ref.name, alias))
            else:
                self._write_alias(ref.name, alias, before)
            raise

    def _point(self, name: str, alias: str, version: int) -> None:
        """Points an alias at a version that was published a moment ago, or takes that back."""
        try:
            self._write_alias(name, alias, version)
        except BaseException:
            path = adapter_path(name, version)
            try:
                self.files.replace(path, REMOVED)
            except StoreError:  # no room for the few bytes of the marker either
                self.files.delete(path)
            raise

    def _filled(self, row: Numbers, bank: Bank, ref: AdapterRef, base: str) -> AdapterSpec | None:
        """The spec of an adapter whose numbers are in the row of an empty slot now, else None."""
        descriptor = self.files.descriptor(adapter_path(ref.name, ref.version))
        if descriptor is None:
            return None
        try:
            takes = lambda h: bank.takes(h.index.layout, h.index.basis_sha256) and agrees(h.own.base, base)  # noqa: E731
            header = fill(row, descriptor, ref.digest, takes)
            return None if header is None else header.index.spec
        finally:
            os.close(descriptor)

    def _each(self, items: Sequence[Item], work: Callable[[int, Item], object], num_threads: int = 0) -> None:
        """Calls work(i, item) for every item, in several threads; raises the first error, and then stops."""
        num_threads = max(1, min(num_threads or self.files.num_threads, len(items)))
        failed = Event()

        def stride(first: int) -> None:
            try:
                for i in range(first, len(items), num_threads):
                    if failed.is_set():
                        return
                    work(i, items[i])
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(num_threads) as pool:
            rest = [pool.submit(stride, first) for first in range(1, num_threads)]
            stride(0)
            for done in rest:
                done.result()
