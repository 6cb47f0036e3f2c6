"""Two processes with a registry at a URL, one of which removes a version to which the other points an alias."""

from contextlib import suppress
from uuid import uuid4

import pytest
from drawn_adapters import drawn

from polyvera.errors import ConflictError, NotFoundError
from polyvera.store.registry import Registry

ALIAS, REMOVE = "alias", "remove"


@pytest.fixture
def two():
    """As two processes have it: neither waits for the other's lock."""
    url = f"memory://{uuid4().hex}"
    one, other = Registry(url), Registry(url)
    for seed in (1, 2):
        one.put("a", drawn("vera", seed=seed))
    one.alias("a", "prod", 1)
    return one, other


def in_between(registry, act, when, monkeypatch):
    """Does something of another process before or after this one's next write."""
    replace, told = registry.files.replace, []

    def racing(path, data):
        is_first = not told
        told.append(path)
        if is_first and when == "before":
            act()
        replace(path, data)
        if is_first and when == "after":
            act()

    monkeypatch.setattr(registry.files, "replace", racing)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_version_that_is_removed_meanwhile_gets_no_alias(two, when, monkeypatch):
    one, other = two
    with_aliases = when == "after"  # the alias is there by then
    in_between(one, lambda: other.remove("a@2", with_aliases=with_aliases), when, monkeypatch)
    with pytest.raises(NotFoundError):
        one.alias("a", "prod", 2)
    assert Registry(one.url).aliases("a") == {"prod": 1} and one.get("a@prod")
    in_between(one, lambda: other.remove("a@1", with_aliases=True), "before", monkeypatch)
    with pytest.raises(NotFoundError):
        one.alias("a", "new", 1)
    assert Registry(one.url).aliases("a") == {}


@pytest.mark.parametrize("with_aliases", [False, True])
def test_a_version_that_gets_an_alias_meanwhile_stays_or_goes_with_it(two, with_aliases, monkeypatch):
    one, other = two
    kept = one.get("a@2").flat.clone()
    in_between(one, lambda: other.alias("a", "late", 2), "before", monkeypatch)
    with suppress(ConflictError) if with_aliases else pytest.raises(ConflictError, match="late points to it"):
        one.remove("a@2", with_aliases=with_aliases)
    fresh = Registry(one.url)
    if with_aliases:
        assert fresh.aliases("a") == {"prod": 1} and [str(ref) for ref in fresh.list()] == ["a@1"]
    else:
        assert fresh.aliases("a") == {"prod": 1, "late": 2} and bool((fresh.get("a@late").flat == kept).all())
    assert fresh.verify() == []
