import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    """The Trainer collects garbage at each run: leave the imported libraries out of it."""
    gc.collect()
    gc.freeze()
