"""TrainingCurves: the losses of a tenant's jobs and runs over their steps, thinned out for people to watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyvera.jobs.database import Database
from polyvera.jobs.fine_tuning_job import RUNNING, SUCCEEDED
from polyvera.jobs.job_table import JobTable

MOST_POINTS = 240
JOB_POINTS = """
SELECT json_extract(data, '$.step') AS step, json_extract(data, '$.train_loss') AS loss FROM events
WHERE job = ?1 AND type = 'metrics' AND (json_extract(data, '$.step') % ?2 = 0 OR json_extract(data, '$.step') = ?3)
ORDER BY number
"""
RUNS = "SELECT id, created_s, ended_s FROM runs WHERE tenant = ? ORDER BY rowid DESC LIMIT ?"
PASSES = "kind = 'forward_backward' AND answer IS NOT NULL"
RUN_POINTS = f"""
SELECT place AS step, loss FROM (
    SELECT ROW_NUMBER() OVER (ORDER BY seq) AS place, json_extract(answer, '$.loss') AS loss FROM operations
    WHERE run = ?1 AND {PASSES})
WHERE place % ?2 = 0 OR place = ?3
"""
MODELS = "SELECT model FROM checkpoints WHERE job = ? ORDER BY number"


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """What one job or run has been doing.

    name: the suffix of a job. step, num_steps: how far it is, and of how many; a run counts its passes, and None is
    an open end. points: (step, loss), at most MOST_POINTS and the last. A job's loss is in nats a token, a run's is the
    sum that its client asks for. models: the references that a job has published, the oldest first.
    """

    id: str
    kind: str
    name: str | None
    status: str
    created_s: int
    step: int
    num_steps: int | None
    points: tuple[tuple[int, float], ...]
    models: tuple[str, ...] = ()


class TrainingCurves:
    """Curves from a database."""

    def __init__(self, database: Database, jobs: JobTable) -> None:
        self._database, self._jobs = database, jobs

    def jobs(self, tenant: str, limit: int) -> Sequence[TrainingCurve]:
        """So many of a tenant's jobs, the newest first."""
        found = []
        for job in self._jobs.list(tenant, limit):
            points = self._points(JOB_POINTS, job.id, job.step)
            models = tuple(row["model"] for row in self._database.rows(MODELS, (job.id,)))
            said = (job.id, "job", job.choices.suffix, job.status, job.created_s, job.step, job.num_steps)
            found.append(TrainingCurve(*said, points, models))
        return found

    def runs(self, tenant: str, limit: int) -> Sequence[TrainingCurve]:
        """So many of a tenant's runs, the newest first. Answers that were forgotten an hour later are not in them."""
        count = f"SELECT COUNT(*) AS num FROM operations WHERE run = ? AND {PASSES}"
        found = []
        for row in self._database.rows(RUNS, (tenant, limit)):
            num = self._database.rows(count, (row["id"],))[0]["num"]
            status = RUNNING if row["ended_s"] is None else SUCCEEDED
            points = self._points(RUN_POINTS, row["id"], num)
            found.append(TrainingCurve(row["id"], "run", None, status, row["created_s"], num, None, points))
        return found

    def _points(self, query: str, id: str, last: int) -> tuple[tuple[int, float], ...]:
        rows = self._database.rows(query, (id, max(1, -(-last // MOST_POINTS)), last))
        return tuple((row["step"], row["loss"]) for row in rows if row["loss"] is not None)
