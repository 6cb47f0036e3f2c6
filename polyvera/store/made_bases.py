"""MadeBases: the pairs A, B that a store keeps, each once under its sha256, and their names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import Basis, basis_at_hand, digest, given_basis
from polyvera.adapter.spec import DIGEST
from polyvera.errors import (
    BasisError,
    ConflictError,
    DamagedFileError,
    FormatError,
    NotFoundError,
    PolyveraError,
    StoreError,
)
from polyvera.store.file.header import MAX_BASIS_NUMBERS
from polyvera.store.files import Buffer, Files
from polyvera.store.paths import BASES, basis_name_path, basis_path, parse_basis
from polyvera.store.reference import check_alias

ABOUT = "about"
MAX_FILE_BYTES = 4 * MAX_BASIS_NUMBERS + (1 << 20)
MANY = 8  # adapters that a message names
NAME_BYTES = 65  # a sha256 and a line end
BEGINNING = re.compile(r"[0-9a-f]{6,63}")
FLOAT32 = torch.float32


@dataclass(frozen=True, slots=True)
class BasisRef:
    """One made basis of a store: its sha256, the names that point to it, and the bytes of its file."""

    sha256: str
    names: tuple[str, ...]
    num_bytes: int


class MadeBases:
    """The made bases of a store. Any number of threads and processes may use it."""

    def __init__(self, url: str, files: Files, naming: Callable[[str], Sequence[object]] = lambda sha256: ()) -> None:
        """naming: the adapters of the store that name a basis, by its sha256."""
        self.url, self._files, self._naming = url, files, naming

    def put(self, basis: Basis, name: str | None = None, about: Mapping[str, str] | None = None) -> str:
        """Stores a basis once, and points a name at it; returns its sha256.

        about: how it was made; kept where the basis is new. Raises ReferenceNameError, BasisError, StoreError.
        """
        if name is not None:
            check_alias(name)
            if BEGINNING.fullmatch(name) or DIGEST.fullmatch(name):
                raise BasisError(f"the name {name!r} could be the beginning of a sha256: choose another")
        key = basis.key
        if key.num_params > MAX_BASIS_NUMBERS or not all(bool(t.isfinite().all()) for t in (basis.A, basis.B)):
            raise BasisError(f"a basis that is stored has finite numbers, and at most {MAX_BASIS_NUMBERS:,} of them")
        data = save({"A": basis.A, "B": basis.B}, {ABOUT: json.dumps(dict(about or {}))})
        self._create(basis.sha256, data)
        if name is not None:
            self._point(name, basis.sha256)
        return basis.sha256

    def get(self, which: str) -> Basis:
        """The basis of a name, of a sha256, or of the beginning of one (six digits or more).

        Raises NotFoundError, DamagedFileError.
        """
        sha256 = self.sha256_of(which)
        return basis_at_hand(sha256) or self._read(sha256)

    def about(self, which: str) -> dict[str, str]:
        """How a basis was made, as put() was told. Raises as get()."""
        data = bytes(self._data(self.sha256_of(which)))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return {str(k): str(v) for k, v in json.loads(header["__metadata__"][ABOUT]).items()}

    def remove(self, which: str) -> str:
        """Removes a basis with its names; returns its sha256.

        It is put back for an adapter that was published meanwhile. Raises NotFoundError, ConflictError with the
        adapters that name it.
        """
        sha256 = self.sha256_of(which)
        data = bytes(self._data(sha256))
        self._check_unnamed(sha256)
        names = next((ref.names for ref in self.list() if ref.sha256 == sha256), ())
        for name in names:
            self._files.delete(basis_name_path(name))
        self._files.delete(basis_path(sha256))
        try:
            self._check_unnamed(sha256)
        except ConflictError:
            self._files.replace(basis_path(sha256), data)
            for name in names:
                self._point(name, sha256)
            raise
        return sha256

    def _check_unnamed(self, sha256: str) -> None:
        naming = [str(one) for one in self._naming(sha256)]
        if naming:
            more = f" and {len(naming) - MANY:,} more" if len(naming) > MANY else ""
            raise ConflictError(
                f"the basis {sha256[:12]} is not removed, since adapters name it: {', '.join(naming[:MANY])}{more}; "
                "remove them first"
            )

    def _point(self, name: str, sha256: str) -> None:
        self._files.replace(basis_name_path(name), f"{sha256}\n".encode())

    def sha256_of(self, which: str) -> str:
        """The sha256 that a name, a sha256 or the beginning of one means. Raises NotFoundError, DamagedFileError."""
        if DIGEST.fullmatch(which):
            return which
        if not BEGINNING.fullmatch(which):
            return self._named(check_alias(which))
        found = [ref.sha256 for ref in self.list() if ref.sha256.startswith(which)]
        if len(found) != 1:
            raise NotFoundError(f"{which!r} is the beginning of {len(found)} bases in {self.url}; {self._known()}")
        return found[0]

    def list(self) -> tuple[BasisRef, ...]:
        """Every made basis, by sha256; verify() names the damaged ones."""
        lying = dict(self._files.folder(BASES))
        names = sorted(path.rpartition("/@")[2] for path in lying if "/@" in path)
        pointed = dict(self._readable(names))
        return tuple(
            BasisRef(sha256, tuple(name for name, to in pointed.items() if to == sha256), size)
            for path, size in sorted(lying.items())
            if (sha256 := parse_basis(path))
        )

    def attached(self, adapter: Adapter) -> Adapter:
        """An adapter of this store with the basis that its spec names, if any. Raises NotFoundError as get()."""
        made = adapter.spec.made_basis
        return replace(adapter, given=self.get(made)) if made and adapter.given is None else adapter

    def keep(self, adapter: Adapter) -> None:
        """Makes sure that the basis that an adapter names is here. Raises BasisError where it is nowhere."""
        made = adapter.spec.made_basis
        if made and self._files.size(basis_path(made)) is None:
            basis = adapter.given or basis_at_hand(made)
            if basis is None:
                raise BasisError(
                    f"the adapter names the made basis {made[:12]}, which this store does not have: copy "
                    f"{basis_path(made)} from the store where it was trained, or export the adapter there to PEFT, "
                    "which takes the basis along"
                )
            self.put(basis)

    def check(self, path: str) -> str:
        """Reads and checks a file below bases/; returns the sha256. Raises StoreError, DamagedFileError."""
        sha256, name = parse_basis(path), path.removeprefix(f"{BASES}/@")
        if not sha256 and name == path:
            raise StoreError("this file does not belong to a registry; move it elsewhere")
        sha256 = sha256 or self._named(name)
        _parsed(self._data(sha256), sha256)
        return sha256

    def _create(self, sha256: str, data: bytes) -> None:
        path = basis_path(sha256)
        try:
            self._read(sha256)
        except NotFoundError:
            try:
                self._files.create(data, [path])
            except StoreError:
                self._read(sha256)  # another publisher was faster, or the error stays
        except DamagedFileError:
            self._files.replace(path, data)

    def _named(self, name: str) -> str:
        data = self._files.read(basis_name_path(name), _at_most(NAME_BYTES))
        if data is None:
            raise NotFoundError(f"there is no basis {name!r} in {self.url}; {self._known()}")
        text = bytes(data).decode("ascii", "replace").strip()
        if not DIGEST.fullmatch(text):
            raise DamagedFileError(f"the basis name {name!r} holds {text[:40]!r}, not a sha256: set it again")
        return text

    def _readable(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            with suppress(DamagedFileError, NotFoundError):  # one bad file hides no other
                yield name, self._named(name)

    def _known(self) -> str:
        known = sorted(path.removeprefix(f"{BASES}/")[:12].lstrip("@") for path, _ in self._files.folder(BASES))
        return f"it has {', '.join(known[:8])}" if known else "it has no bases"

    def _read(self, sha256: str) -> Basis:
        return given_basis(*_parsed(self._data(sha256), sha256))

    def _data(self, sha256: str) -> Buffer:
        data = self._files.read(basis_path(sha256), _at_most(MAX_FILE_BYTES))
        if data is None:
            raise NotFoundError(f"there is no basis {sha256[:12]} in {self.url}; {self._known()}")
        return data


def _at_most(num_bytes: int) -> Callable[[Callable[[], bytes], int], None]:
    def check(head: Callable[[], bytes], size: int) -> None:
        if size > num_bytes:
            raise DamagedFileError(f"a file of {size:,} bytes, where at most {num_bytes:,} are read")

    return check


def _parsed(data: Buffer, sha256: str) -> tuple[Tensor, Tensor]:
    """A and B of a file. Raises DamagedFileError for all but finite fp32 matrices of that sha256."""
    try:
        if len(data) > MAX_FILE_BYTES:
            raise FormatError(f"it has {len(data):,} bytes")
        tensors = load(bytes(data))
        _check_pair(tensors)
        A, B = tensors["A"], tensors["B"]
        if digest(A, B) != sha256:
            raise FormatError("its values have another sha256")
    except (SafetensorError, ValueError, PolyveraError) as error:
        raise DamagedFileError(f"the file of the basis {sha256[:12]} is damaged: {error}") from None
    return A, B


def _check_pair(tensors: Mapping[str, Tensor]) -> None:
    """Raises FormatError."""
    if set(tensors) != {"A", "B"} or any(t.dtype != FLOAT32 or t.dim() != 2 for t in tensors.values()):
        raise FormatError("it does not hold the matrices A and B in float32")
    A, B = tensors["A"], tensors["B"]
    if not A.shape[0] == B.shape[1] >= 1 or prod(A.shape) + prod(B.shape) > MAX_BASIS_NUMBERS:
        raise FormatError(f"A is {tuple(A.shape)} and B {tuple(B.shape)}")
    if not all(bool(t.isfinite().all()) for t in (A, B)):
        raise FormatError("it holds NaN or infinity")
