"""Registry: adapters by name and version. A publish is one atomic, durable step; a version never changes.

A removed version leaves a marker in its place. store/paths.py says where each file lies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count, islice
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import agrees, check_fingerprint
from polyvera.errors import FormatError, NotFoundError, PolyveraError, SlotError, StoreError
from polyvera.store.file.codec import check_digest, decode, encode, read_header
from polyvera.store.file.read_into import Row, fill
from polyvera.store.local_files import open_files
from polyvera.store.paths import ADAPTERS, ALIASES, adapter_path, alias_path, parse_adapter, parse_alias
from polyvera.store.reference import VERSION, AdapterRef, check_alias, check_name, check_version, parse_reference

if TYPE_CHECKING:
    from polyvera.adapter.bank import Bank
    from polyvera.adapter.spec import AdapterSpec

# What stands in the place of a removed version, so that its number is never given out again.
REMOVED = b"removed\n"
MAX_RACES = 10_000
MANY = 8

Which = AdapterRef | str
Item = TypeVar("Item")
# Registry has a method called list, so its annotations cannot say list[...].
Refs = list[AdapterRef]
Adapters = list[Adapter]
Slots = list[int]


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

    Raises StoreError for a URL that cannot be opened.
    """

    def __init__(self, url: str | Path, **options: Any) -> None:
        self.url = str(url)
        self.files = open_files(url, **options)

    def put(self, name: str, adapter: Adapter, *, alias: str | None = None, dtype: str = "float32") -> AdapterRef:
        """Publishes an adapter as the next version of a name; returns its reference once it is durable.

        name: such as 'team/task'. alias: is pointed at the new version. dtype: of the stored numbers: 'float32',
        'bfloat16' or 'int8'.

        Raises ReferenceNameError, FormatError for an adapter with NaN or inf, StoreError if it cannot be written.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        data = encode(adapter, dtype)
        first = max(self._published(name), default=0) + 1
        path = self.files.create(data, (adapter_path(name, v) for v in islice(count(first), MAX_RACES)))
        version = parse_adapter(path)[1]
        if alias is not None:
            self.alias(name, alias, version)
        return AdapterRef(name, version, self.files.location(path), len(data), read_header(data).own.digest)

    def get(self, which: Which) -> Adapter:
        """An adapter, after a check of every byte of its file.

        which: 'name' (the latest), 'name@3', 'name@alias', or an AdapterRef. Raises NotFoundError, FormatError.
        """
        return self._read(self._ref(which))

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
            adapter = self._read(ref)
            check_fingerprint(adapter.base, base)
            with lock:
                return bank.put(slots[i], adapter)

        self._each(asked, load)
        return list(slots)

    def resolve(self, which: str) -> AdapterRef:
        """`name` (the latest version), `name@latest`, `name@3` or `name@alias`.

        Raises NotFoundError, ReferenceNameError.
        """
        reference = parse_reference(which)
        if reference.version is not None:
            return self._exact(reference.name, reference.version)
        if reference.alias is not None:
            return self._exact(reference.name, self._alias(reference.name, reference.alias))
        live = {v: size for v, size in self._published(reference.name).items() if size != len(REMOVED)}
        if not live:
            raise self._no_name(reference.name)
        return self._made(reference.name, max(live), live[max(live)])

    def list(self, prefix: str | None = None, *, latest: bool = False, missing_ok: bool = True) -> Refs:
        """Every version, or only the latest of each name, by name and version; names that begin with the prefix.

        missing_ok=False: raises NotFoundError where there is no store, or no name begins so.
        """
        refs = []
        for path, size in self.files.walk(ADAPTERS):
            name, version = parse_adapter(path)
            if version and size != len(REMOVED) and name.startswith(prefix or ""):
                refs.append(self._made(name, version, size))
        if not (refs or missing_ok):
            self.check_exists()
            if prefix:
                raise self._no_name(prefix, "no adapter begins with")
        refs.sort(key=lambda ref: (ref.name, ref.version))
        return list({ref.name: ref for ref in refs}.values()) if latest else refs

    def remove(self, which: Which, *, with_aliases: bool = False) -> None:
        """Removes one version, `name@3`; its number is never given out again, and its bytes are gone.

        Raises StoreError where an alias points to it (with_aliases removes those too), or where no version is named.
        """
        ref = self._ref(which) if isinstance(which, AdapterRef) else self._named(which)
        pointing = [alias for alias, version in self.aliases(ref.name).items() if version == ref.version]
        if pointing and not with_aliases:
            raise StoreError(
                f"{ref} is not removed, since {_shown(pointing)} points to it: point the alias elsewhere with "
                "alias(name, alias, version), or remove it too with remove(..., with_aliases=True)"
            )
        for alias in pointing:
            self.unalias(ref.name, alias)
        self.files.replace(adapter_path(ref.name, ref.version), REMOVED)

    def alias(self, name: str, alias: str, version: int) -> AdapterRef:
        """Points an alias at a version, atomically. Raises NotFoundError, ReferenceNameError."""
        ref = self._exact(check_name(name), check_version(version))
        self.files.replace(alias_path(name, check_alias(alias)), f"{version}\n".encode())
        return ref

    def unalias(self, name: str, alias: str) -> None:
        """Removes an alias; the version stays. Raises NotFoundError."""
        self._alias(check_name(name), check_alias(alias))
        self.files.delete(alias_path(name, alias))

    def aliases(self, name: str) -> Mapping[str, int]:
        """The version of each alias of a name. Raises NotFoundError for a name that was never published."""
        folder = f"{ALIASES}/{check_name(name)}"
        names = sorted(path.rpartition("/@")[2] for path, _ in self.files.folder(folder) if "/@" in path)
        if not names and not self._published(name):
            raise self._no_name(name)
        return {alias: self._alias(name, alias) for alias in names}

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
        self._each([*self.files.walk(ADAPTERS), *self.files.walk(ALIASES)], check, num_threads)
        return sorted(problems, key=lambda problem: problem.path)

    def check_exists(self) -> None:
        """Raises NotFoundError if nothing was published yet, or if something other than a store is there."""
        names = self.files.names()
        if names is None:
            raise NotFoundError(
                f"there is no store {self.url!r}; the first publish makes one, or give the one that has the adapters"
            )
        others = [name for name in names if not name.startswith(".")]
        if others and ADAPTERS not in others:
            raise NotFoundError(f"{self.url!r} is not a store: it has no {ADAPTERS!r}, but {_shown(others[:MANY])}")

    def _check(self, path: str) -> None:
        name, version = parse_adapter(path)
        if version:
            data = self.files.read(path)
            if data is not None and data != REMOVED:
                decode(data)
                check_digest(data)
            return
        name, alias = parse_alias(path)
        if not alias:
            raise StoreError("this file does not belong to a registry; move it elsewhere")
        self._exact(name, self._alias(name, alias))

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
        return self._exact(reference.name, reference.version)

    def _read(self, ref: AdapterRef) -> Adapter:
        path = adapter_path(ref.name, ref.version)
        data = self.files.read(path)
        if data is None or data == REMOVED:
            raise self._no_version(ref.name, ref.version)
        try:
            return decode(data, ref.digest)
        except FormatError as error:
            raise FormatError(f"{self.files.location(path)}: {error}") from error

    def _filled(self, row: Row, bank: Bank, ref: AdapterRef, base: str) -> AdapterSpec | None:
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

    def _published(self, name: str) -> dict[int, int]:
        """The bytes of every version ever published of a name, removed ones too."""
        found = ((parse_adapter(path)[1], size) for path, size in self.files.folder(f"{ADAPTERS}/{name}"))
        return {version: size for version, size in found if version}

    def _exact(self, name: str, version: int) -> AdapterRef:
        size = self.files.size(adapter_path(name, version))
        if size is None or size == len(REMOVED):
            raise self._no_version(name, version)
        return self._made(name, version, size)

    def _made(self, name: str, version: int, size: int) -> AdapterRef:
        return AdapterRef(name, version, self.files.location(adapter_path(name, version)), size)

    def _alias(self, name: str, alias: str) -> int:
        """The version that an alias points to."""
        path = alias_path(name, alias)
        data = self.files.read(path)
        if data is None:
            raise NotFoundError(f"{name!r} has no alias {alias!r}; {_nearest(alias, self.aliases(name), 'aliases')}")
        text = bytes(data).decode("ascii", "replace").strip()
        if not VERSION.fullmatch(text):
            raise FormatError(f"{self.files.location(path)} holds {text[:40]!r}, not a version: set the alias again")
        return int(text)

    def _no_version(self, name: str, version: int) -> NotFoundError:
        published = self._published(name)
        live = sorted(v for v, size in published.items() if size != len(REMOVED))
        if not live:
            return self._no_name(name)
        why = "was removed" if version in published else "is not there"
        return NotFoundError(f"{name}@{version} {why}; {name!r} has versions {_shown(live[-MANY:])}")

    def _no_name(self, name: str, what: str = "no adapter") -> NotFoundError:
        try:
            self.check_exists()
        except NotFoundError as error:
            return NotFoundError(f"{what} {name!r}: {error}")
        names = {ref.name for ref in self.list()}
        return NotFoundError(f"{what} {name!r} in {self.url}; {_nearest(name, names, 'names')}")

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


def _nearest(given: str, known: Iterable[str], what: str) -> str:
    """The known names nearest to the given one, else the first few."""
    names = sorted(known)
    near = get_close_matches(given, names, n=3)
    shown = f"the nearest are {_shown(near)}" if near else f"the first are {_shown(names[:MANY])}"
    return f"it has {len(names)} {what}, {shown}" if names else f"it has no {what}"


def _shown(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
