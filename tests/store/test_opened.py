"""Which registry a caller means."""

from pathlib import Path

import pytest

from polyvera.store.opened import opened
from polyvera.store.registry import Registry


def test_a_registry_a_folder_the_environments_or_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    assert opened(registry) is registry
    monkeypatch.setenv("POLYVERA_STORE", str(tmp_path / "shelf"))
    assert opened(tmp_path).url == registry.url == opened(str(tmp_path)).url
    assert opened().url == Registry(tmp_path / "shelf").url
    monkeypatch.setenv("POLYVERA_STORE", "")
    assert opened().url == Registry("adapters").url
