"""Journal: what became of each tenant of a fleet, and what a killed run needs to go on, in one folder.

outcomes.jsonl          a line for each tenant that has left the fleet, appended and synced
training.safetensors    the tenants that were training at the last save
start.safetensors       the adapter that all began from, which the store may no longer give
leaving/                an adapter on its way into the store, so that it is published once, whenever the kill comes
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.errors import FormatError, NotFoundError, RecipeError
from polyvera.store.durable import replace_file
from polyvera.store.file.codec import decode, encode, read_header
from polyvera.store.reference import check_name
from polyvera.store.registry import Registry
from polyvera.train import checkpoint
from polyvera.train.destination import check_folder, put_or_keep
from polyvera.train.fleet.member import Member
from polyvera.train.recipe import Recipe
from polyvera.train.rounding import rounds

OUTCOMES, TRAINING, START, LEAVING = "outcomes.jsonl", "training.safetensors", "start.safetensors", "leaving"
BASE = "base.txt"
FINISHED, SKIPPED, QUARANTINED = "finished", "skipped", "quarantined"


@dataclass(frozen=True)
class Outcome:
    """What became of a tenant.

    status: 'finished', 'skipped' (its data can't be used) or 'quarantined' (its loss or gradient was no number), with
    the problem. reference: `name@version` in the store. train_loss: the mean of the last ten steps, eval_loss: the best
    on the validation rows, in nats. rounding_loss: by how much storing the numbers in another dtype raised the loss of
    the first training rows. adapter: only where there is no store.
    """

    name: str
    status: str
    problem: str = ""
    reference: str = ""
    num_rows: int = 0
    num_steps: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    rounding_loss: float | None = None
    adapter: Adapter | None = None


class Journal:
    """What became of each tenant of a run, in a folder and a store; None for either keeps nothing there.

    prefix: of the tenants' names in the store. stored: the dtype of the stored numbers.
    """

    def __init__(self, folder: Path | None, registry: Registry | None, prefix: str = "", stored: str = "float32"):
        self.folder, self.registry, self.prefix, self.stored = folder, registry, prefix, stored
        self.outcomes: dict[str, Outcome] = {}

    def open(self, recipe: Recipe, *, resume: bool) -> None:
        """Begins the folder, or reads it to go on. Raises RecipeError where it holds a run and resume is false."""
        if self.folder is None:
            if resume:
                raise RecipeError("resume needs output: the folder of the run to go on with")
            return
        check_folder(self.folder)
        begun = (self.folder / checkpoint.RECIPE).exists()
        if begun and not resume:
            raise RecipeError(f"output={str(self.folder)!r} holds a run already: resume it, or choose another folder")
        checkpoint.keep_recipe(self.folder, recipe.of_the_run())
        self.outcomes = {outcome.name: outcome for outcome in _read(self.folder / OUTCOMES)}
        self._publish_the_leaving()

    def keep_base(self, fingerprint: str) -> None:
        """Writes into the run's folder what base it trains on. Raises RecipeError where it was another."""
        if self.folder is None:
            return
        file = self.folder / BASE
        before = file.read_text() if file.exists() else fingerprint
        if before != fingerprint:
            raise RecipeError(
                f"{self.folder} cannot be resumed on another base model: it was {before}, and is {fingerprint}"
            )
        replace_file(file, fingerprint.encode())

    @property
    def rounds(self) -> bool:
        """Whether the store gives back other numbers than were trained."""
        return self.registry is not None and rounds(self.stored)

    def name_of(self, tenant: str) -> str:
        """The tenant's name in the store. Raises ReferenceNameError."""
        return check_name(self.prefix + tenant) if self.registry is not None else tenant

    def record(self, outcome: Outcome) -> None:
        """Keeps what became of a tenant, its adapter in the store where there is one."""
        adapter = outcome.adapter
        if adapter is not None and self.registry is not None:
            outcome = replace(outcome, adapter=None, reference=self._published(outcome, adapter))
        self.outcomes[outcome.name] = outcome
        if self.folder is not None:
            self._append(replace(outcome, adapter=None))
            self._leaving(outcome.name).unlink(missing_ok=True)

    def start(self, ask: Callable[[], Adapter | None]) -> Adapter | None:
        """The adapter that all begin from: that of the run that is resumed, else what ask() returns, which is kept."""
        path = None if self.folder is None else self.folder / START
        if path is not None and path.exists():
            return _decoded(path)
        given = ask()
        if path is not None and given is not None:
            replace_file(path, encode(given))
        return given

    def save(self, members: Iterable[Member]) -> None:
        """Keeps the state of all that train, whole or not at all."""
        if self.folder is not None:
            states = ((f"{m.name}|{key}", t) for m in members for key, t in m.state().items())
            checkpoint.write(self.folder / TRAINING, dict(states))

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The state of each tenant at the last save, those that have left since left out."""
        path = None if self.folder is None else self.folder / TRAINING
        found: dict[str, dict[str, Tensor]] = {}
        if path is not None and path.exists():
            for key, tensor in checkpoint.read(path).items():
                name, _, part = key.rpartition("|")
                found.setdefault(name, {})[part] = tensor
        return {name: state for name, state in found.items() if name not in self.outcomes}

    def _published(self, outcome: Outcome, adapter: Adapter) -> str:
        assert self.registry is not None
        if self.folder is not None:
            data = encode(adapter, self.stored)
            text = json.dumps(asdict(replace(outcome, adapter=None))).encode()
            replace_file(self._leaving(outcome.name), len(text).to_bytes(8, "little") + text + data)
        name = self.name_of(outcome.name)
        return str(put_or_keep(self.registry, name, adapter, alias=None, dtype=self.stored, folder=self.folder))

    def _publish_the_leaving(self) -> None:
        """Ends what a kill cut short: an adapter that is in the store already is not published again."""
        assert self.folder is not None
        for path in sorted((self.folder / LEAVING).glob("*.adapter")):
            whole = path.read_bytes()
            size = int.from_bytes(whole[:8], "little")
            outcome, data = Outcome(**json.loads(whole[8 : 8 + size])), whole[8 + size :]
            if outcome.name not in self.outcomes:
                reference = self._reference(self.name_of(outcome.name), read_header(data).own.digest)
                known = replace(outcome, reference=reference)
                self.record(known if reference else replace(outcome, adapter=decode(data)))
            path.unlink(missing_ok=True)

    def _reference(self, name: str, digest: str) -> str:
        """The reference of the latest version where it has that digest, else ''."""
        assert self.registry is not None
        try:
            ref = self.registry.resolve(name)
            self.registry.get(replace(ref, digest=digest))
        except (NotFoundError, FormatError):
            return ""
        return str(ref)

    def _leaving(self, tenant: str) -> Path:
        assert self.folder is not None
        return self.folder / LEAVING / f"{quote(tenant, safe='')}.adapter"

    def _append(self, outcome: Outcome) -> None:
        assert self.folder is not None
        path = self.folder / OUTCOMES
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        with path.open("ab") as file:
            file.write((b"" if whole else b"\n") + json.dumps(asdict(outcome)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _decoded(path: Path) -> Adapter:
    try:
        return decode(path.read_bytes())
    except (OSError, FormatError) as error:
        raise RecipeError(f"{path} cannot be resumed from: {error}") from error


def _read(path: Path) -> Iterable[Outcome]:
    """The outcomes in a file; a line that a kill cut short does not count."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values: Mapping[str, object] = json.loads(line)
        except ValueError:
            continue
        yield Outcome(**values)  # type: ignore[arg-type]
