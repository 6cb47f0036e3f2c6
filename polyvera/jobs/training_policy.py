"""TrainingPolicy: what a server trains for its tenants, how much of the machine it takes, and what each tenant may."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from polyvera.adapter.method import method_named
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import ServeError
from polyvera.settings.field import MIB, Count, Described
from polyvera.settings.parts import check

TRAIN = "Training"


@dataclass(frozen=True, slots=True)
class TrainingPolicy:
    """What the service trains and allows. Raises ServeError for an invalid value."""

    train: Annotated[bool, Described("Take files and fine-tuning jobs, and train them beside the answers.", TRAIN)] = (
        False
    )
    folder: Annotated[Path, Described("Folder of the tenants' files, jobs and runs.", TRAIN, name="train_folder")] = (
        Path("training")
    )
    share: Annotated[
        Annotated[float, Gt(0.0), Le(1.0)],
        Described(
            "The part of the processor's time that the trainer takes; it rests in the other.", TRAIN, name="train_share"
        ),
    ] = 1.0
    method: Annotated[str, Described("The method of the adapters that are trained.", TRAIN, name="train_method")] = (
        AdapterSpec().method
    )
    rank: Annotated[Count | None, Described("Their rank; by default the method's own.", TRAIN, name="train_rank")] = (
        None
    )
    targets: Annotated[str, Described("Their layers, as a recipe names them.", TRAIN, name="train_targets")] = "default"
    deterministic: Annotated[
        bool,
        Described(
            "Compute the rows of each job and run in batches of their own: slower, and what it becomes is bit for bit "
            "the same whatever trains beside it.",
            TRAIN,
            name="train_deterministic",
        ),
    ] = False
    slots: Annotated[Count, Described("Jobs that train at a time.", TRAIN, name="train_slots")] = 32
    max_tenant_bytes: Annotated[
        Count, Described("Most bytes of one tenant's files, in MiB.", TRAIN, name="max_files_mib", scale=MIB)
    ] = 256 << 20
    max_jobs: Annotated[Count, Described("Jobs of one tenant that have not ended.", TRAIN)] = 16
    max_daily_tokens: Annotated[
        Count | None, Described("Tokens that one tenant may train on in a day (UTC); by default any number.", TRAIN)
    ] = None
    max_epochs: Annotated[Annotated[int, Ge(1)], Described("Epochs of one job.", TRAIN)] = 50
    max_runs: Annotated[Count, Described("Open runs of one tenant that it trains call by call.", TRAIN)] = 1024

    def __post_init__(self) -> None:
        check(self, ServeError)
        method_named(self.method)
