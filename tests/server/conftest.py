"""One server of two tenants' adapters for each file of tests that names no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_serve import Solo, assert_nothing_is_left
from tiny_server import Served, make_base, served


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, loras: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), lora_root=loras) as found:
        yield found
        assert_nothing_is_left(found.engine)


@pytest.fixture(scope="module")
def solo() -> Solo:
    return Solo(make_base())
