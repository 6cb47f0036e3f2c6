"""What a job makes is named by its tenant, and a name says whose it is."""

import pytest
from some_jobs import create, opened

from polyvera.jobs.fine_tuning_job import owner_of
from polyvera.store.reference import check_name


@pytest.mark.parametrize("tenant", ["acme", ""])
@pytest.mark.parametrize("suffix", ["tickets", None])
def test_the_adapters_name_is_its_tenants(tmp_path, tenant, suffix):
    job = create(opened(tmp_path), tenant, suffix=suffix, metadata={"a": "b"})
    assert check_name(job.adapter_name).startswith(f"ft/{tenant or 'open'}/{suffix or ''}")
    assert owner_of(job.adapter_name) == (tenant or "open")
    assert job.choices.metadata == {"a": "b"} and job.error is None


@pytest.mark.parametrize("name", ["ft", "acme/ft/x", "ftx/acme", "acme/one"])
def test_all_other_names_have_no_owner(name):
    assert owner_of(name) is None
