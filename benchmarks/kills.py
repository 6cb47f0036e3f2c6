"""Fine-tuning jobs under kill -9: of the trainer, of engines and of the server, at random moments.

    python benchmarks/kills.py [--kills 30] [--steps 600] [--deterministic] [--folder FOLDER]

Eight jobs of four tenants over a tiny model train twice, once undisturbed. Told are the jobs that ended, the largest
difference between what they became, and whether each tenant was charged for its tokens exactly once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from server_process import begun, ended
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.jobs.fine_tuning import FineTuning
from polyvera.jobs.fine_tuning_job import ACTIVE, FineTuningJob, JobChoices
from polyvera.jobs.training_policy import TrainingPolicy
from polyvera.model.load import load_base
from polyvera.store.registry import Registry

NUM_JOBS, NUM_TENANTS, BATCH_SIZE, EPOCH_STEPS = 8, 4, 2, 30
TRAINER, ENGINE, SERVER = "trainer", "engine", "server"
MODULES = {TRAINER: "polyvera.train.live.trainer_main", ENGINE: "polyvera.replicas.replica_main"}
WEIGHTS = {TRAINER: 6, ENGINE: 3, SERVER: 1}
WORDS = ["the", "sea", "is", "blue", "and", "red", "deep", "cold", "old", "new", "wide", "far"]


def main() -> None:
    """Trains twice, and compares."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--kills", type=int, default=30)
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--seconds", type=float, default=500.0, help="No kill begins later than so long after the start.")
    args.add_argument("--deterministic", action="store_true")
    args.add_argument("--folder", type=Path)
    given = args.parse_args()
    root = given.folder or Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    ends, found = time.monotonic() + given.seconds, {}
    for name, kills in (("undisturbed", 0), ("killed", given.kills)):
        one = ServedJobs(root / name, given.deterministic)
        one.prepare(given.steps)
        started = time.monotonic()
        one.run(kills, ends)
        found[name] = one
        print(f"{name}: {time.monotonic() - started:.0f} s, kills {dict(one.kills) or 'none'}", flush=True)
    compare(found["undisturbed"], found["killed"])


@dataclass(eq=False)
class ServedJobs:
    """A served folder with eight jobs. kills: how many of each process there were."""

    root: Path
    deterministic: bool
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def tuning(self) -> FineTuning:
        """Its jobs."""
        return FineTuning.open(TrainingPolicy(train=True, folder=self.root / "training"))

    def prepare(self, steps: int) -> None:
        """A tiny base, files, and jobs that wait."""
        save_tiny(self.root / "base")
        tuning = self.tuning
        for number in range(NUM_JOBS):
            tenant, draw = f"t{number % NUM_TENANTS}", random.Random(number)
            rows = [
                {"prompt": " ".join(draw.choices(WORDS, k=6)), "completion": " ".join(draw.choices(WORDS, k=4))}
                for _ in range(BATCH_SIZE * EPOCH_STEPS)
            ]
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            file = tuning.files.add(tenant, f"rows{number}.jsonl", "fine-tune", data)
            choices = JobChoices(number, f"j{number}", steps // EPOCH_STEPS, BATCH_SIZE)
            tuning.jobs.create(tenant, "tiny", file.id, None, choices)

    def run(self, kills: int, ends: float) -> None:
        """Serves until all jobs have ended, and kills so often meanwhile."""
        draw, server = random.Random(0), self._served()
        try:
            while any(job.status in ACTIVE for job in self.jobs()):
                before = sum(job.step for job in self.jobs())
                self._wait(before, draw.uniform(0.5, 3.0))
                if sum(self.kills.values()) < kills and time.monotonic() < ends:
                    which = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                    server = self._killed(which, server, draw)
        finally:
            ended(server)

    def jobs(self) -> list[FineTuningJob]:
        """All of them, by name."""
        tuning = self.tuning
        found = [job for i in range(NUM_TENANTS) for job in tuning.jobs.list(f"t{i}", 100)]
        return sorted(found, key=lambda job: job.choices.suffix or "")

    def weights(self) -> list[Tensor]:
        """What each became."""
        registry = Registry(str(self.root / "store"))
        return [registry.get(job.adapter_name).flat for job in self.jobs()]

    def charged(self) -> dict[str, int]:
        """Tokens of each tenant."""
        rows = self.tuning.database.rows("SELECT tenant, SUM(tokens) AS num FROM usage GROUP BY tenant")
        return {row["tenant"]: row["num"] for row in rows}

    def _wait(self, before: int, seconds: float) -> None:
        """Until some step was made since, and then so long."""
        while sum(job.step for job in self.jobs()) <= before and any(job.status in ACTIVE for job in self.jobs()):
            time.sleep(0.1)
        time.sleep(seconds)

    def _served(self) -> subprocess.Popen[bytes]:
        flags = ["--train", "--train-folder", str(self.root / "training"), "--train-rank", "8", "--replicas", "2"]
        flags += ["--train-targets", "all-linear"] + (["--train-deterministic"] if self.deterministic else [])
        return begun(str(self.root / "base"), self.root, *flags)[0]

    def _killed(self, which: str, server: subprocess.Popen[bytes], draw: random.Random) -> subprocess.Popen[bytes]:
        pids = [server.pid] if which == SERVER else children(server.pid, MODULES[which])
        if not pids:
            return server
        with suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)
        self.kills[which] += 1
        if which != SERVER:
            return server
        server.wait()
        return self._served()


def children(parent: int, module: str) -> list[int]:
    """The processes of that module that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            status = (path / "status").read_text()
            if module.encode() in words and f"PPid:\t{parent}\n" in status:
                found.append(int(path.name))
    return found


def save_tiny(folder: Path) -> None:
    """A base of two narrow layers, with the tokenizer of SmolLM2."""
    if folder.exists():
        return
    tokenizer = load_base("smollm2").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def compare(one: ServedJobs, other: ServedJobs) -> None:
    """Tells how both ended."""
    statuses = Counter(job.status for job in other.jobs())
    pairs = list(zip(one.weights(), other.weights(), strict=True))
    equal = sum(torch.equal(a, b) for a, b in pairs)
    most = max(float((a - b).norm() / a.norm()) for a, b in pairs)
    planned: Counter[str] = Counter()
    for job in other.jobs():
        planned[job.tenant] += job.planned_tokens
    print(f"jobs: {dict(statuses)}; {equal} of {len(pairs)} bit for bit as undisturbed, at most {most:.1e} from it")
    print(f"charged: {'once' if other.charged() == one.charged() == dict(planned) else 'WRONG'}: {other.charged()}")
    steps = [step_numbers(other, job) for job in other.jobs()]
    print(f"steps told twice: {sum(len(own) - len({*own}) for own in steps)}", flush=True)


def step_numbers(one: ServedJobs, job: FineTuningJob) -> Sequence[int]:
    """Those of a job's metrics events."""
    return [*_steps(one, job)]


def _steps(one: ServedJobs, job: FineTuningJob) -> Iterator[int]:
    for row in one.tuning.database.rows("SELECT data FROM events WHERE job = ? AND type = 'metrics'", (job.id,)):
        yield json.loads(row["data"])["step"]


if __name__ == "__main__":
    main()
