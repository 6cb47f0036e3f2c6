"""A database with a tenant's session and runs."""

from some_jobs import opened

from polyvera.jobs.training_run import CREATE, RunChoices

CHOICES = RunChoices(4)


def session_of(tuning, tenant="acme"):
    return tuning.runs.create_session(tenant, None, {})


def run_of(tuning, tenant="acme", number=0, session=None, choices=CHOICES):
    at = session or session_of(tuning, tenant)
    return tuning.operations.create_run(tenant, at, number, CREATE, choices, {"who": "me"}, {}).run


__all__ = ["opened", "run_of", "session_of"]
