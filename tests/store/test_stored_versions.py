"""What lies in a place is read version by version."""

from pathlib import Path

import pytest
from drawn_adapters import drawn

from polyvera.errors import NotFoundError
from polyvera.store.registry import Registry
from polyvera.store.stored_versions import REMOVED, StoredVersions, shown


def test_versions_are_those_that_were_published(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    stored = StoredVersions(registry.url, registry.files)
    with pytest.raises(NotFoundError, match="there is no store"):
        stored.check_exists() if tmp_path.rmdir() is None else None
    for _ in range(2):
        registry.put("t/x", drawn("vera"))
    registry.remove("t/x@1")
    assert stored.published("t/x").keys() == {1, 2} and stored.published("t/x")[1] == len(REMOVED)
    assert str(stored.resolve("t/x")) == "t/x@2" == str(stored.exact("t/x", 2)) == str(stored.list()[0])
    with pytest.raises(NotFoundError, match="was removed; 't/x' has versions 2"):
        stored.exact("t/x", 1)
    assert "it has 1 names, the nearest are t/x" in str(stored.no_name("t/y")) and shown([1, "a"]) == "1, a"
