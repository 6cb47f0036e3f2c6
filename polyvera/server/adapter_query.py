"""AdapterQuery: which adapters a list shows, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polyvera.errors import ServeError
from polyvera.store.reference import AdapterRef

# What costs no reading of files; a minus in front is the other way round.
SORTS: dict[str, Callable[[AdapterRef], Any]] = {
    "name": lambda ref: ref.name,
    "bytes": lambda ref: (ref.num_bytes, ref.name),
    "version": lambda ref: (ref.version, ref.name),
}


@dataclass(frozen=True, slots=True)
class AdapterQuery:
    """prefix, search: what a name begins with and has in it, in any case of letters. after: the name before the first.

    offset, limit: the part of them that is shown. Raises ServeError for an unknown order.
    """

    prefix: str = ""
    search: str = ""
    sort: str = "name"
    after: str = ""
    offset: int = 0
    limit: int = 100

    def __post_init__(self) -> None:
        if self.sort.removeprefix("-") not in SORTS:
            raise ServeError(
                f"sort={self.sort[:40]!r} must be one of: {', '.join(SORTS)}, or one with - before", "sort"
            )

    def chosen(self, refs: Iterable[AdapterRef]) -> list[AdapterRef]:
        """All that match, in order."""
        words = self.search.lower().split()
        found = (ref for ref in refs if ref.name > self.after and all(word in ref.name.lower() for word in words))
        return sorted(found, key=SORTS[self.sort.removeprefix("-")], reverse=self.sort.startswith("-"))

    def page(self, refs: Sequence[AdapterRef]) -> Sequence[AdapterRef]:
        """The part that is shown."""
        return refs[self.offset : self.offset + self.limit]

    def has_more(self, refs: Sequence[AdapterRef]) -> bool:
        """Whether more come after it."""
        return len(refs) > self.offset + self.limit
