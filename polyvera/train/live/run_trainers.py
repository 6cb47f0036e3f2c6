"""RunTrainers: a live trainer for each method and rank that runs choose, over one base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from polyvera.adapter.inject import inject
from polyvera.adapter.layout import layout_of
from polyvera.adapter.method import OWN_WIDTH, Method, method_named
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import SpecError
from polyvera.jobs.training_run import RunChoices
from polyvera.model.load import Base
from polyvera.plan import slots_within
from polyvera.train.live.live_trainer import LiveTrainer
from polyvera.train.live.mixed_pass import Pace

MAX_BANKS, MAX_RANK = 4, 128
BANK_BYTES = 1 << 30
ATTENTION, UNEMBEDDING, OTHER = "train_attn", "train_unembed", "train_mlp"
# A part of a layer's name, and the kind of layer that it is of; the first that fits.
KINDS: Mapping[str, str] = MappingProxyType(
    {"attn": ATTENTION, "attention": ATTENTION, "lm_head": UNEMBEDDING, "embed": UNEMBEDDING, "": OTHER}
)
Key = tuple[str, int]


class RunTrainers:
    """Trainers by what they train. The first, which fine-tuning jobs share, is of the server's own method and rank.

    slots: of each further bank, fewer where they would take more than BANK_BYTES.
    """

    def __init__(self, own: LiveTrainer, slots: int, folder: Path, pace: Pace = lambda seconds: None) -> None:
        self._slots, self._folder, self._pace = slots, folder, pace
        self._spec = own.bank.spec_of(0)
        self.key: Key = (self._spec.method, self._spec.common_rank)
        self._all: dict[Key, LiveTrainer] = {self.key: own}

    def of(self, choices: RunChoices) -> tuple[Key, LiveTrainer]:
        """The trainer of a run, new where there is none yet. Raises SpecError for what this server does not train."""
        key = self._key(choices)
        self._check_layers(choices)
        if key not in self._all:
            if len(self._all) >= MAX_BANKS:
                known = " and ".join(f"{method} of rank {rank}" for method, rank in self._all)
                raise SpecError(f"this server trains {known} already, and nothing else beside them")
            self._all[key] = self._made(*key)
        return key, self._all[key]

    def rounds(self) -> None:
        """A round of each trainer that others do not drive."""
        for key, trainer in self._all.items():
            if key != self.key:
                trainer.round()

    def _key(self, choices: RunChoices) -> Key:
        row = method_named(choices.method or self._spec.method)
        rank = self._rank(row, choices.rank)
        if not row.shares_basis and rank != OWN_WIDTH and (choices.rank or 1) > rank:
            raise SpecError(f"rank={choices.rank}: this server trains {row.name} with a rank of {rank} at most")
        return row.name, rank

    def _rank(self, row: Method, asked: int | None) -> int:
        """The rank of a basis that all share is the server's; any other is as it was asked for, within a bound."""
        own = self.key[1] if row.name == self._spec.method else row.rank
        return own if asked is None or row.shares_basis else min(asked, max(MAX_RANK, own))

    def _check_layers(self, choices: RunChoices) -> None:
        """Raises SpecError for a kind of layer that is trained here and not to be trained."""
        for site in self._all[self.key].bank.layout.sites:
            kind = next(kind for part, kind in KINDS.items() if part in site.name)
            if choices.trained and kind not in choices.trained:
                raise SpecError(f"{kind}=False: this server trains {site.name} and others of its kind; leave it out")

    def _made(self, method: str, rank: int) -> LiveTrainer:
        own = self._all[self.key]
        spec = AdapterSpec(method=method, rank=rank or None, targets=self._spec.targets, exclude=self._spec.exclude)
        with _kept_trainable(own.base):
            bank = inject(own.base.model, spec, self._num_slots(spec, own.base))
        folder = self._folder / f"{method}-{rank}"
        apart = own.passes.is_deterministic
        return LiveTrainer(own.base, bank, model=own.model, folder=folder, pace=self._pace, is_deterministic=apart)

    def _num_slots(self, spec: AdapterSpec, base: Base) -> int:
        size = layout_of(spec, find_sites(base.model, spec)).expanded.num_params
        return min(self._slots, slots_within(BANK_BYTES, size))


@contextmanager
def _kept_trainable(base: Base) -> Iterator[None]:
    """What is trained before is so afterwards: a bank that comes freezes all else."""
    before = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(True)
