"""StoredVersions: the versions and aliases that lie in a place, each checked whenever it is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import TypeVar

from polyvera.adapter.adapter import Adapter
from polyvera.errors import DamagedFileError, FormatError, NotFoundError, UnpublishedNameError
from polyvera.store.file.codec import Buffer, Header, check_digest, check_promise, decode, read_header
from polyvera.store.files import Files
from polyvera.store.made_bases import MadeBases
from polyvera.store.paths import ADAPTERS, ALIASES, BASES, adapter_path, alias_path, parse_adapter
from polyvera.store.reference import VERSION, AdapterRef, check_alias, check_name, parse_reference

# What stands in the place of a removed version, so that its number is never given out again.
REMOVED = b"removed\n"
MANY = 8
MAX_ALIAS_BYTES = 64
LARGE_BYTES = 16 << 20
log = logging.getLogger(__name__)
Refs = list[AdapterRef]
Found = TypeVar("Found")


class StoredVersions:
    """What a registry reads. url: for people. One bad file never hides the others."""

    def __init__(self, url: str, files: Files) -> None:
        self.url, self.files = url, files
        self.bases = MadeBases(url, files, self.naming)

    def resolve(self, which: str) -> AdapterRef:
        """`name` (the latest version), `name@latest`, `name@3` or `name@alias`.

        Raises NotFoundError, ReferenceNameError.
        """
        reference = parse_reference(which)
        if reference.version is not None:
            return self.exact(reference.name, reference.version)
        if reference.alias is not None:
            return self.exact(reference.name, self.alias(reference.name, reference.alias))
        live = {v: size for v, size in self.published(reference.name).items() if _is_live(size)}
        if not live:
            raise self.no_name(reference.name)
        return self._made(reference.name, max(live), live[max(live)])

    def list(self, prefix: str | None = None, *, latest: bool = False, missing_ok: bool = True) -> Refs:
        """Every version, or only the latest of each name, by name and version; names that begin with the prefix.

        missing_ok=False: raises NotFoundError where there is no store, or no name begins so.
        """
        refs = []
        for path, size in self.files.walk(ADAPTERS):
            name, version = parse_adapter(path)
            if version and _is_live(size) and name.startswith(prefix or ""):
                refs.append(self._made(name, version, size))
        if not (refs or missing_ok):
            self.check_exists()
            if prefix:
                raise self.no_name(prefix, "no adapter begins with")
        refs.sort(key=lambda ref: (ref.name, ref.version))
        return list({ref.name: ref for ref in refs}.values()) if latest else refs

    def aliases(self, name: str) -> Mapping[str, int]:
        """The version of each alias of a name, damaged ones left out; verify() names those.

        Raises NotFoundError for a name that nobody published.
        """
        folder = f"{ALIASES}/{check_name(name)}"
        names = sorted(path.rpartition("/@")[2] for path, _ in self.files.folder(folder) if "/@" in path)
        if not names and not self.published(name):
            raise self.no_name(name)
        return dict(self._readable(name, names))

    def check_exists(self) -> None:
        """Raises NotFoundError where nothing was published yet, or the place holds something else than a store."""
        names = self.files.names()
        if names is None:
            raise NotFoundError(
                f"there is no store {self.url!r}; the first publish makes one, or give the one that has the adapters"
            )
        others = [name for name in names if not name.startswith(".")]
        if others and not {ADAPTERS, BASES} & {*others}:
            raise NotFoundError(f"{self.url!r} is not a store: it has no {ADAPTERS!r}, but {shown(others[:MANY])}")

    def read(self, ref: AdapterRef) -> Adapter:
        """An adapter with its basis, every byte of their files checked. Raises NotFoundError, DamagedFileError."""
        return self.bases.attached(self._checked(ref, decode))

    def header(self, ref: AdapterRef) -> Header:
        """The header of an adapter's file, every byte of which is checked. Raises NotFoundError, DamagedFileError."""
        return self._checked(ref, read_header)

    def naming(self, basis_sha256: str) -> Refs:
        """The adapters that name a made basis; damaged ones, which nobody can use, are left out."""
        found = []
        for ref in self.list():
            with suppress(DamagedFileError, NotFoundError):
                if self.header(ref).index.spec.made_basis == basis_sha256:
                    found.append(ref)
        return found

    def read_file(self, ref: AdapterRef) -> bytes:
        """The bytes of an adapter's file, every one checked. Raises NotFoundError, DamagedFileError."""

        def whole(data: Buffer, digest: str) -> bytes:
            check_digest(data)
            return bytes(data)

        return self._checked(ref, whole)

    def _checked(self, ref: AdapterRef, reader: Callable[[Buffer, str], Found]) -> Found:
        path = adapter_path(ref.name, ref.version)
        try:
            data = self.files.read(path, check_head)
            if data is not None and data != REMOVED:
                return reader(data, ref.digest)
        except FormatError as error:
            raise self._damaged(f"{ref.name}@{ref.version}", path, error) from error
        raise self._no_version(ref.name, ref.version)

    def _damaged(self, what: str, path: str, error: FormatError) -> DamagedFileError:
        """The error for a file that is not as it must be; its path goes to the log alone."""
        log.error("%s is damaged: %s", self.files.location(path), error)
        return DamagedFileError(f"the stored file of {what} is damaged: {error}")

    def _readable(self, name: str, aliases: Iterable[str]) -> Iterator[tuple[str, int]]:
        for alias in aliases:
            with suppress(FormatError, NotFoundError):  # another may have removed it meanwhile
                yield alias, self.alias(name, check_alias(alias))

    def published(self, name: str) -> dict[int, int]:
        """The bytes of every version ever published of a name, removed ones too."""
        found = ((parse_adapter(path)[1], size) for path, size in self.files.folder(f"{ADAPTERS}/{name}"))
        return {version: size for version, size in found if version}

    def exact(self, name: str, version: int) -> AdapterRef:
        """A version that is there. Raises NotFoundError, DamagedFileError for what is no regular file."""
        path = adapter_path(name, version)
        try:
            size = self.files.size(path)
        except DamagedFileError as error:
            raise self._damaged(f"{name}@{version}", path, error) from error
        if size is None or size == len(REMOVED):
            raise self._no_version(name, version)
        return self._made(name, version, size)

    def _made(self, name: str, version: int, size: int) -> AdapterRef:
        return AdapterRef(name, version, self.files.location(adapter_path(name, version)), size)

    def alias(self, name: str, alias: str) -> int:
        """The version that an alias points to."""
        path = alias_path(name, alias)
        try:
            data = self.files.read(path, _check_alias_file)
        except FormatError as error:
            raise self._damaged(f"the alias {name}@{alias}", path, error) from error
        if data is None:
            raise NotFoundError(f"{name!r} has no alias {alias!r}; {_nearest(alias, self.aliases(name), 'aliases')}")
        text = bytes(data).decode("ascii", "replace").strip()
        if not VERSION.fullmatch(text):
            raise self._damaged(
                f"the alias {name}@{alias}", path, FormatError(f"it holds {text[:40]!r}, not a version: set it again")
            )
        return int(text)

    def _no_version(self, name: str, version: int) -> NotFoundError:
        published = self.published(name)
        live = sorted(v for v, size in published.items() if _is_live(size))
        if not live:
            return self.no_name(name)
        why = "was removed" if version in published else "is not there"
        return NotFoundError(f"{name}@{version} {why}; {name!r} has versions {shown(live[-MANY:])}")

    def no_name(self, name: str, what: str = "no adapter") -> NotFoundError:
        """The error for a name, or a beginning of one, that nobody published."""
        try:
            self.check_exists()
        except NotFoundError as error:
            return UnpublishedNameError(f"{what} {name!r}: {error}")
        names = {ref.name for ref in self.list()}
        return UnpublishedNameError(f"{what} {name!r} in {self.url}; {_nearest(name, names, 'names')}")


def _is_live(size: int) -> bool:
    """Whether a file of so many bytes may be a version that is there; what is no regular file is none."""
    return size >= 0 and size != len(REMOVED)


def check_head(head: Callable[[], bytes], num_bytes: int) -> None:
    """Before a file is read: a large one must begin with a header that promises its length."""
    if num_bytes > LARGE_BYTES:
        check_promise(head(), num_bytes)


def _check_alias_file(head: Callable[[], bytes], num_bytes: int) -> None:
    if num_bytes > MAX_ALIAS_BYTES:
        raise FormatError(f"it has {num_bytes} bytes, and a version has at most {MAX_ALIAS_BYTES}")


def _nearest(given: str, known: Iterable[str], what: str) -> str:
    """The known names nearest to the given one, else the first few."""
    names = sorted(known)
    near = get_close_matches(given, names, n=3)
    some = f"the nearest are {shown(near)}" if near else f"the first are {shown(names[:MANY])}"
    return f"it has {len(names)} {what}, {some}" if names else f"it has no {what}"


def shown(values: Iterable[object]) -> str:
    """Several things, for people."""
    return ", ".join(map(str, values))
