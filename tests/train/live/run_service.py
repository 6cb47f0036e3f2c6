"""A tenant's calls to runs, and workers over them, one after another."""

from some_runs import run_of

from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.pass_rows import PassRow, rows_to_bytes
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.jobs.training_run import FORWARD_BACKWARD, OPTIMIZER_STEP, SAVE, SAVE_FOR_SAMPLER
from polyvera.store.registry import Registry
from polyvera.train.live.run_trainers import RunTrainers
from polyvera.train.live.run_worker import RunWorker

ADAM = {"learning_rate": 0.02, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 1.0}
KEPT = {"ttl_seconds": None, "user_metadata": {}}


class RunService:
    """A folder with runs and a store."""

    def __init__(self, root, **choices):
        self.policy = TrainingPolicy(folder=root / "training", **choices)
        self.tuning, self.registry = FineTuning.open(self.policy), Registry(root / "store")

    def worker(self, trainer, **choices):
        trainers = RunTrainers(trainer, 2, self.policy.folder / "parked")
        return RunWorker(trainers, self.tuning.database, self.registry, self.policy, **choices)

    def run(self, tenant="acme", **choices):
        return run_of(self.tuning, tenant, **choices)

    def call(self, run, kind, request, rows=None, seq=None, tenant="acme"):
        return self.tuning.operations.submit(tenant, run, seq, kind, request, rows).id

    def passed(self, run, rows, kind=FORWARD_BACKWARD, loss_fn="cross_entropy", **config):
        data = rows_to_bytes([PassRow(row.tokens, row.targets, row.inputs) for row in rows])
        return self.call(run, kind, {"loss_fn": loss_fn, "loss_fn_config": config}, data)

    def step(self, run):
        return self.call(run, OPTIMIZER_STEP, ADAM)

    def save(self, run, name, **choices):
        return self.call(run, SAVE, {"name": name, "overwrite": False, **KEPT, **choices})

    def publish(self, run, name, *, is_named=True, number=None):
        return self.call(
            run, SAVE_FOR_SAMPLER, {"name": name, "is_named": is_named, "sampling_session_seq_id": number, **KEPT}
        )

    def answer(self, id, tenant="acme"):
        return self.tuning.operations.get(tenant, id)[0]


def work(trainer, worker, rounds=40):
    for _ in range(rounds):
        worker.take()
        trainer.round()
        worker.work()
