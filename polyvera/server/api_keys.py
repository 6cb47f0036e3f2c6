"""Keys: who may call what. A file of API keys, of which it holds only the sha256."""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from polyvera.errors import AccessError, ForbiddenError, FormatError, KeyFileError, ServeError
from polyvera.jobs.fine_tuning_job import owner_of
from polyvera.store.reference import SEGMENT, is_name
from polyvera.store.regular_file import read_regular

ID_CHARS = 12
Rate = Annotated[int, Field(ge=1, le=10**15)]
MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class KeyRates:
    """How much a key may use; None is without a bound. Tokens are those of prompts and answers."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


NO_RATES = KeyRates()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    adapters: names, or beginnings of names that end in '*'. base: may call the bare base model. key: the id of its key,
    '' for none. weight: its share beside other tenants.
    """

    tenant: str
    adapters: tuple[str, ...]
    base: bool
    admin: bool
    key: str = ""
    weight: float = 1.0
    rates: KeyRates = NO_RATES

    @property
    def sees_all(self) -> bool:
        """Whether it is an operator's key."""
        return "*" in self.adapters

    def sees(self, name: str) -> bool:
        """Whether an adapter's name is in scope; what a tenant trained here is in its own alone."""
        owner = owner_of(name)
        if owner is not None and self.tenant:
            return owner == self.tenant
        return any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in self.adapters)

    def check_admin(self) -> None:
        """Raises AccessError for a key without the admin scope."""
        if not self.admin:
            raise ForbiddenError("this needs a key with the admin scope")


EVERYONE = Caller("", ("*",), base=True, admin=True)


class ApiKey(BaseModel):
    """A key as it is kept.

    sha256: of the secret, hex. created, expires: ISO 8601, none for never. weight: the tenant's share beside others,
    1 where there is none. The rest is as in KeyRates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tenant: str
    adapters: tuple[str, ...]
    base: bool = False
    admin: bool = False
    created: datetime
    expires: datetime | None = None
    weight: float | None = Field(None, gt=0, le=1000)
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    tokens_per_day: Rate | None = None

    @field_validator("tenant")
    @classmethod
    def _tenant(cls, value: str) -> str:
        if not SEGMENT.fullmatch(value):
            raise ValueError("a tenant is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or digit")
        return value

    @field_validator("adapters")
    @classmethod
    def _adapters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not is_name(one.removesuffix("*").removesuffix("/")):
                raise ValueError(f"{one!r} is no adapter name, nor the beginning of one with '*' at its end")
        return value

    @property
    def id(self) -> str:
        """A short name to remove it by."""
        return self.sha256[:ID_CHARS]

    @property
    def caller(self) -> Caller:
        """Who calls with it."""
        rates = KeyRates(self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        return Caller(self.tenant, self.adapters, self.base, self.admin, self.id, self.weight or 1.0, rates)


class ApiKeyList(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keys: tuple[ApiKey, ...] = ()


class KeyFile:
    """The API keys in a file, reloaded when it changes. Any number of threads and processes.

    on_change: called with the ids of added and of removed keys, when a change is seen.
    """

    def __init__(
        self, path: Path, on_change: Callable[[set[str], set[str]], None] = lambda added, removed: None
    ) -> None:
        self.path, self._on_change = path, on_change
        self._lock = Lock()
        self._seen: tuple[int, ...] = ()
        self._keys: tuple[ApiKey, ...] = ()

    def caller(self, secret: str) -> Caller:
        """Who calls with a key. Raises AccessError for one that is unknown or has expired."""
        digest = sha256(secret.encode(errors="surrogateescape")).hexdigest()
        found = None
        for key in self.keys():  # all of them, whichever matches: the time tells nothing
            if compare_digest(key.sha256, digest):
                found = key
        if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
            raise AccessError("this API key is unknown or has expired")
        return found.caller

    def keys(self) -> tuple[ApiKey, ...]:
        """The keys as the file has them now; none where it is gone.

        Raises KeyFileError for one that cannot be read: a key that it no longer holds lets nobody in.
        """
        with self._lock:
            try:
                seen = _mark(self.path)
            except FileNotFoundError:
                self._seen, self._keys = (), ()
                return ()
            except OSError as error:
                raise KeyFileError(f"the file of keys {self.path} cannot be read: {error.strerror}") from error
            if seen != self._seen:
                before, self._keys = self._keys, read_keys(self.path)
                if self._seen and before != self._keys:
                    old, new = ({key.id for key in keys} for keys in (before, self._keys))
                    self._on_change(new - old, old - new)
                self._seen = seen
            return self._keys

    def reload(self) -> None:
        """Reads the file whether it has changed or not. Raises KeyFileError."""
        with self._lock:
            self._seen = self._seen and (0,)
        self.keys()

    def add(
        self,
        tenant: str,
        adapters: Sequence[str],
        *,
        base: bool = False,
        admin: bool = False,
        days: float | None = None,
        weight: float | None = None,
        rates: KeyRates = NO_RATES,
    ) -> tuple[str, ApiKey]:
        """Makes a key; returns its secret, which is kept nowhere, and what is kept. Raises ServeError."""
        secret = f"pv-{secrets.token_urlsafe(32)}"
        now = datetime.now(UTC).replace(microsecond=0)
        expires = None if days is None else now + timedelta(days=days)
        given = {
            "tenant": tenant,
            "adapters": adapters,
            "base": base,
            "admin": admin,
            "weight": weight,
            **asdict(rates),
        }
        try:
            key = ApiKey(sha256=sha256(secret.encode()).hexdigest(), created=now, expires=expires, **given)
        except ValidationError as error:
            raise ServeError(_first(error)) from None
        with self._changing() as keys:
            self._write((*keys, key))
        return secret, key

    def remove(self, id: str) -> ApiKey:
        """Removes the key of that id. Raises ServeError where there is none."""
        with self._changing() as keys:
            gone = next((key for key in keys if key.id == id), None)
            if gone is None:
                known = ", ".join(key.id for key in keys) or "none"
                raise ServeError(f"{self.path} has no key {id!r}; there are: {known}")
            self._write(tuple(key for key in keys if key is not gone))
        return gone

    @contextmanager
    def _changing(self) -> Iterator[tuple[ApiKey, ...]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield read_keys(self.path) if self.path.exists() else ()

    def _write(self, keys: tuple[ApiKey, ...]) -> None:
        text = ApiKeyList(keys=keys).model_dump_json(indent=1, exclude_none=True) + "\n"
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(name).replace(self.path)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises KeyFileError for one that cannot be read or is no file of keys."""
    try:
        return ApiKeyList.model_validate_json(read_regular(path, MAX_FILE_BYTES, follows_links=True)).keys
    except OSError as error:
        raise KeyFileError(f"the file of keys {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise KeyFileError(f"{path} is no file of keys: {_first(error)}; `polyvera keys` writes one") from None
    except FormatError as error:
        raise KeyFileError(f"{path} is no file of keys: {error}") from None


def rates_text(key: ApiKey) -> str:
    """A key's rates in a line, such as '60 requests/min, 1,000,000 tokens/day, weight 2'; 'none' for none."""
    rates = key.caller.rates
    bounds = {
        "requests/min": rates.requests_per_minute,
        "tokens/min": rates.tokens_per_minute,
        "tokens/day": rates.tokens_per_day,
    }
    said = [f"{size:,} {unit}" for unit, size in bounds.items() if size is not None]
    return ", ".join(said + ([] if key.weight is None else [f"weight {key.weight:g}"])) or "none"


def _mark(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
