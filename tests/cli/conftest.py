from pathlib import Path

import pytest
from command_line import save_tenants


@pytest.fixture
def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a base model and the rows of tenants."""
    monkeypatch.chdir(tmp_path)
    save_tenants()
    return tmp_path
