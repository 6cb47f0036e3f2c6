"""Catalog: the models that a caller can name: the base, and the adapters in its scope."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from time import monotonic
from typing import Any

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import agrees
from polyvera.errors import (
    ForbiddenError,
    FormatError,
    NotFoundError,
    PolyveraError,
    StoreUnavailableError,
    UnpublishedNameError,
)
from polyvera.model.answer import OF_TEXT, Meaning, meaning_of
from polyvera.server.api_keys import Caller
from polyvera.store.reference import AdapterRef, Reference, parse_reference
from polyvera.store.registry import Registry

BASE = "base"
MAX_FACTS = 20_000
DAMAGED_S = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What the file of an adapter says of it.

    created: ISO 8601. base: the fingerprint of its base, where known. prompt_form: as an adapter has it.
    """

    method: str
    rank: int
    num_params: int
    created: str
    scores: dict[str, float]
    labels: tuple[str, ...]
    base: str
    prompt_form: str = ""
    meaning: Meaning = OF_TEXT

    @property
    def created_s(self) -> int:
        """In seconds since 1970, 0 where it is not known."""
        try:
            return int(datetime.fromisoformat(self.created).timestamp())
        except ValueError:
            return 0


class Catalog:
    """Names to adapters, within a caller's scope. Reads the store: not for the event loop. Any number of threads.

    A name out of scope is told in the same words as one that nobody published.
    """

    def __init__(self, registry: Registry | None, base: str, fingerprint: str = "") -> None:
        self.registry, self.base, self._fingerprint = registry, base, fingerprint
        self._closed: set[str] = set()
        self._is_known = False  # whether the store was there once
        self._damaged: dict[tuple[str, int], float] = {}  # until when it is not read again
        self._facts: OrderedDict[tuple[str, int], AdapterFacts] = OrderedDict()
        self._lock = Lock()

    def resolve(self, caller: Caller, model: str) -> AdapterRef | None:
        """What `model` means now, None for the base. Raises NotFoundError, AccessError."""
        name = self._without_base(model)
        if name is None:
            if not caller.base:
                raise ForbiddenError("this API key may call adapters only, not the bare base model")
            return None
        return self.find(caller, name)

    def name_of(self, adapter: AdapterRef | None) -> str:
        """What answers call the model: the adapter's reference, the base's name for None."""
        return self.base if adapter is None else str(adapter)

    def is_servable(self, ref: AdapterRef) -> bool:
        """Whether it is an adapter of the base that is served, as far as its file can be read."""
        facts = self.facts(ref)
        return facts is None or agrees(facts.base, self._fingerprint)

    def check_store(self) -> None:
        """Raises StoreUnavailableError where the store cannot be read, or was there and is gone."""
        if self.registry is None:
            return
        try:
            self.registry.check_exists()
            self._is_known = True
        except NotFoundError as error:
            if self._is_known:
                raise StoreUnavailableError(f"the store has gone: {error}") from None

    def find(self, caller: Caller, reference: str) -> AdapterRef:
        """An adapter in scope, by `name`, `name@3` or `name@alias`. Raises NotFoundError."""
        return self._found(caller, reference)[0]

    def parsed(self, caller: Caller, reference: str) -> Reference:
        """The parts of a reference in scope. Raises NotFoundError."""
        try:
            found = parse_reference(reference)
        except PolyveraError:
            raise _missing(reference) from None
        if self.registry is None or not caller.sees(found.name) or found.name in self._closed:
            raise _missing(reference)
        return found

    def names(self, caller: Caller, prefix: str = "") -> Iterator[AdapterRef]:
        """The latest version of every name in scope, by name."""
        self.check_store()
        if self.registry is not None:
            for ref in self.registry.list(prefix or None, latest=True):
                if caller.sees(ref.name) and ref.name not in self._closed:
                    yield ref

    def versions(self, name: str) -> list[AdapterRef]:
        """Every version of a name that is there, the oldest first."""
        assert self.registry is not None
        return [ref for ref in self.registry.list(name) if ref.name == name]

    def facts(self, ref: AdapterRef) -> AdapterFacts | None:
        """What is known of an adapter; None where its file is damaged or was removed a moment ago."""
        key = ref.name, ref.version
        with self._lock:
            if key in self._facts:
                return self._facts[key]
            if self._damaged.get(key, 0.0) > monotonic():
                return None
        try:
            assert self.registry is not None
            facts = facts_of(self.registry.get(ref))
        except (FormatError, NotFoundError):
            with self._lock:
                self._damaged = {k: end for k, end in self._damaged.items() if end > monotonic()}
                self._damaged[key] = monotonic() + DAMAGED_S
            return None
        with self._lock:
            self._facts[key] = facts
            while len(self._facts) > MAX_FACTS:
                self._facts.popitem(last=False)
        return facts

    def told(self, ref: AdapterRef) -> dict[str, Any]:
        """All of it, as JSON."""
        assert self.registry is not None
        facts = self.facts(ref)
        known: dict[str, Any] = {"id": str(ref), "name": ref.name, "version": ref.version, "bytes": ref.num_bytes}
        if facts is not None:
            known |= {name: getattr(facts, name) for name in ("method", "rank", "num_params", "created", "scores")}
            known |= {"labels": list(facts.labels), "task": facts.meaning.task} if facts.labels else {}
            known |= {"prompt_form": facts.prompt_form} if facts.prompt_form else {}
        known |= {"servable": facts is not None and self.is_servable(ref)}
        known |= {"damaged": True} if facts is None else {}
        return known | {"aliases": self.aliases(ref.name)}

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a name; none where they cannot be read or nobody published it."""
        assert self.registry is not None
        try:
            return dict(self.registry.aliases(name))
        except (FormatError, NotFoundError) as error:  # one bad entry takes no list
            log.error("the aliases of %s cannot be read: %s", name, error)
            return {}

    def forget(self) -> None:
        """Reads every file again when it is asked about."""
        with self._lock:
            self._facts.clear()
            self._damaged.clear()

    def close(self, name: str) -> None:
        """Takes a name out of service until open() or the next publish."""
        self._closed.add(name)

    def open(self, name: str) -> None:
        """Puts a name back into service."""
        self._closed.discard(name)

    def _found(self, caller: Caller, reference: str) -> tuple[AdapterRef, Reference]:
        parsed = self.parsed(caller, reference)
        assert self.registry is not None
        try:
            return self.registry.resolve(reference), parsed
        except NotFoundError as error:
            self.check_store()
            if isinstance(error, UnpublishedNameError):  # which names others
                raise _missing(reference) from None
            raise NotFoundError(f"{_missing(reference)} ({error})") from None

    def _without_base(self, model: str) -> str | None:
        if model in (BASE, self.base):
            return None
        first, colon, rest = model.partition(":")
        return rest if colon and first in (BASE, self.base) else model


def facts_of(adapter: Adapter) -> AdapterFacts:
    """What is shown of an adapter: what holds for it, whether it was chosen or left to its default."""
    spec, scores = adapter.spec, dict(adapter.scores)
    rank, labels = spec.common_rank or adapter.layout.max_rank, tuple(adapter.labels)
    size, created, form = adapter.num_params, adapter.created, adapter.prompt_form
    return AdapterFacts(spec.method, rank, size, created, scores, labels, adapter.base, form, meaning_of(adapter))


def _missing(given: str) -> NotFoundError:
    return NotFoundError(f"The model {given[:200]!r} does not exist or you do not have access to it.")
