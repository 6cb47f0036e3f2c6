"""A sampling session is its tenant's alone, and the same however often it is asked for."""

import pytest
from some_runs import opened, session_of

from polyvera.errors import UnknownObjectError


def test_a_sampling_session_is_its_tenants(tmp_path):
    tuning = opened(tmp_path)
    session = session_of(tuning)
    made = tuning.samplers.create("acme", session, 0, None, None)
    again = tuning.samplers.create("acme", session, 0, "tinker://x", "y@1")
    assert again == made and made.adapter is None and list(tuning.samplers.of_session(session)) == [made.id]
    with pytest.raises(UnknownObjectError, match="no sampling session"):
        tuning.samplers.get("globex", made.id)
    with pytest.raises(UnknownObjectError, match="no session"):
        tuning.samplers.create("globex", session, 1, None, None)
