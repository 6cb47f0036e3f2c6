"""One server that trains, and clients of two tenants, for all files here."""

from collections.abc import Iterator

import pytest
from raw_tinker import RawTinker
from tuned_server import Tuned, tuned


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    with tuned(tmp_path_factory.mktemp("tinker")) as found:
        yield found


@pytest.fixture(scope="session")
def acme(training: Tuned) -> RawTinker:
    assert training.at.keys is not None
    return RawTinker(training.at.url, training.at.keys.add("acme", ["acme/*"], base=True)[0])


@pytest.fixture(scope="session")
def globex(training: Tuned) -> RawTinker:
    return RawTinker(training.at.url, training.globex.api_key)
