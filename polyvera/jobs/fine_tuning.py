"""FineTuning: the files, jobs and runs of a server that trains."""

from __future__ import annotations

from dataclasses import dataclass

from polyvera.jobs.database import Database
from polyvera.jobs.job_table import JobTable
from polyvera.jobs.operation_table import OperationTable
from polyvera.jobs.run_table import RunTable
from polyvera.jobs.sampler_table import SamplerTable
from polyvera.jobs.saved_weights import WeightsTable
from polyvera.jobs.training_curves import TrainingCurves
from polyvera.jobs.training_files import TrainingFiles
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.jobs.upload_table import UploadTable


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What the server's routes work with."""

    policy: TrainingPolicy
    database: Database
    files: TrainingFiles
    uploads: UploadTable
    jobs: JobTable
    runs: RunTable
    operations: OperationTable
    weights: WeightsTable
    samplers: SamplerTable
    curves: TrainingCurves

    @classmethod
    def open(cls, policy: TrainingPolicy) -> FineTuning:
        """That of the policy's folder, which is made. Raises StoreUnavailableError."""
        database = Database(policy.folder)
        files, jobs = TrainingFiles(database, policy.max_tenant_bytes), JobTable(database, policy)
        uploads = UploadTable(database, files, policy.max_tenant_bytes)
        runs, operations = RunTable(database), OperationTable(database, policy)
        weights, samplers = WeightsTable(database), SamplerTable(database)
        curves = TrainingCurves(database, jobs)
        return cls(policy, database, files, uploads, jobs, runs, operations, weights, samplers, curves)
