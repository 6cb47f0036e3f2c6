"""paths: where a version and an alias lie, and which files are neither."""

from __future__ import annotations

import pytest

from polyvera.store.paths import adapter_path, alias_path, parse_adapter, parse_alias

NAMES = ("a", "a/b", "team/task/x.1")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_says_what_it_was_made_of(name: str) -> None:
    assert parse_adapter(adapter_path(name, 12)) == (name, 12)
    assert parse_alias(alias_path(name, "prod")) == (name, "prod")
    assert parse_adapter(alias_path(name, "prod")) == ("", 0)
    assert parse_alias(adapter_path(name, 12)) == ("", "")


def test_an_alias_is_never_in_the_way_of_a_name() -> None:
    paths = [alias_path(name, alias) for name in NAMES for alias in ("b", "x")]
    assert len({*paths}) == len(paths)
    assert not any(path.startswith(f"{other}/") for path in paths for other in paths)


@pytest.mark.parametrize(
    "path",
    ["adapters/a/0.safetensors", "adapters/a/01.safetensors", "adapters/a/1.bin", "other/a/1.safetensors",
     "adapters/1.safetensors", "adapters/a b/1.safetensors", "adapters/a/../1.safetensors", "aliases/a/prod"],
)  # fmt: skip
def test_another_file_is_neither(path: str) -> None:
    assert parse_adapter(path) == ("", 0) and parse_alias(path) == ("", "")
