"""One family's tiny model, and what the cells ask of it."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from family_rows import ENCODER_DECODER, READS, SORTS, WRITES, Row
from tiny_models import counting_rows, make_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.layer_use import gets_chosen_tokens
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import base_layers, linear_layers
from polyvera.model.coverage import coverage_of
from polyvera.model.load import Base, load_base
from polyvera.model.task import LABEL
from polyvera.train.recipe import Recipe

METHODS = ("vera", "lora", "dvora")
TARGETS = ("default", "all-linear")
EXPERTS = "experts"
FUSED, LISTED, LEFT_OUT = "fused", "layers", "not adapted"
EQUAL = "equal"
BY_ROW = "equal, row by row"
TOLERANCE = 1e-3


class DifferentError(Exception):
    """Two results that should be equal and are not."""


def close(found: Tensor, expected: Tensor) -> None:
    """Raises DifferentError."""
    far = float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6))
    if not far <= TOLERANCE:
        raise DifferentError(f"off by {far:.2g}")


def output_of(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The first tensor of floats that a forward gives with a row for each row."""
    out = model(**given)
    return getattr(out, "logits", None) if getattr(out, "logits", None) is not None else out[0]


@dataclass
class Family:
    """One family's tiny model in a folder, and what was made of it."""

    row: Row
    folder: Path
    trained: dict[tuple[str, str], Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gc.collect()
        gc.freeze()  # else each run of a Trainer walks over all that was ever imported
        self.row.make().save_pretrained(self.base)
        make_tokenizer().save_pretrained(self.base)
        rows = [{"text": f"w{i} w{i % 7}", "label": "ab"[i % 2]} for i in range(12)]
        rows = rows if SORTS[self.row.sort].task == LABEL else counting_rows(12)
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def data(self) -> Path:
        return self.folder / "rows.jsonl"

    def recipe(self, method: str, targets: str) -> Recipe:
        given = {
            "model": str(self.base),
            "data": str(self.data),
            "max_steps": 3,
            "batch_size": 4,
            "rank": 2,
            "lr": 0.01,
        }
        return Recipe(method=method, targets=targets, name=f"t/{method}", store=str(self.folder / targets), **given)

    def load(self) -> Base:
        """The base as the product loads it for the family's task, new."""
        task = SORTS[self.row.sort].task
        return load_base(str(self.base), task=task, labels=("a", "b") if task == LABEL else ())

    @cached_property
    def verbs(self) -> bool:
        return self.row.sort in (WRITES, READS, ENCODER_DECODER)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Never adapted for longer than a cell."""
        return (self.load().model if self.verbs else self.row.make()).eval()

    @cached_property
    def experts(self) -> str:
        """How the family's experts can be adapted, '' where it has none."""
        layers = base_layers(self.model)
        if set(layers) - set(linear_layers(self.model)):
            return FUSED
        if any(map(gets_chosen_tokens, layers)):
            return LISTED
        left = dict(coverage_of(self.model, ()).left_out)
        return LEFT_OUT if EXPERTS in left else ""

    @property
    def targets(self) -> tuple[str, ...]:
        return (*TARGETS, EXPERTS) if self.experts == FUSED else TARGETS

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return SORTS[self.row.sort].inputs(self.model)

    def spec(self, method: str, targets: str) -> AdapterSpec:
        return AdapterSpec(method, rank=2, targets=targets)

    def strong(self, method: str, targets: str, seed: int = 5) -> Adapter:
        """An adapter with large random numbers, so that a wrong layer shows."""
        bank = inject(self.model, self.spec(method, targets))
        try:
            adapter = extract(bank, bank.first, self.model)
        finally:
            eject(self.model)
        return replace(
            adapter, flat=torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(seed)) * 0.4
        )

    def adapted(self, adapter: Adapter, **given: Any) -> Tensor:
        """The output of a batch with one adapter."""
        [slot] = load(self.model, adapter)
        try:
            with torch.no_grad(), route(slot):
                return output_of(self.model, given or self.inputs)
        finally:
            eject(self.model)
