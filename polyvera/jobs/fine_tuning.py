"""FineTuning: the files and the jobs of a server that trains."""

from __future__ import annotations

from dataclasses import dataclass

from polyvera.jobs.database import Database
from polyvera.jobs.job_table import JobTable
from polyvera.jobs.training_files import TrainingFiles
from polyvera.jobs.training_policy import TrainingPolicy


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What the server's routes work with."""

    policy: TrainingPolicy
    files: TrainingFiles
    jobs: JobTable

    @classmethod
    def open(cls, policy: TrainingPolicy) -> FineTuning:
        """That of the policy's folder, which is made. Raises StoreUnavailableError."""
        database = Database(policy.folder)
        return cls(policy, TrainingFiles(database, policy.max_tenant_bytes), JobTable(database, policy))
