"""A list is searched, sorted and cut into pages."""

import pytest

from polyvera.errors import ServeError
from polyvera.server.adapter_query import SORTS, AdapterQuery
from polyvera.store.reference import AdapterRef

REFS = [
    AdapterRef(name, version, "", size)
    for name, version, size in (("a/Red", 3, 10), ("b/blue", 1, 30), ("c/red", 2, 20))
]


def names(**given: object) -> list[str]:
    query = AdapterQuery(**given)  # type: ignore[arg-type]
    return [ref.name for ref in query.page(query.chosen(REFS))]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "a/Red b/blue c/red"),
        ({"search": "RED"}, "a/Red c/red"),
        ({"search": "red c/"}, "c/red"),
        ({"search": "nobody"}, ""),
        ({"sort": "-name"}, "c/red b/blue a/Red"),
        ({"sort": "bytes"}, "a/Red c/red b/blue"),
        ({"sort": "-version"}, "a/Red c/red b/blue"),
        ({"after": "a/Red", "limit": 1}, "b/blue"),
        ({"offset": 1, "limit": 1}, "b/blue"),
        ({"offset": 9}, ""),
    ],
)
def test_what_is_shown(given: dict[str, object], found: str) -> None:
    assert names(**given) == found.split()


def test_more_is_told_until_the_end() -> None:
    assert [AdapterQuery(offset=i, limit=1).has_more(REFS) for i in range(4)] == [True, True, False, False]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ServeError, match=f"one of: {', '.join(SORTS)}"):
        AdapterQuery(sort="created")
