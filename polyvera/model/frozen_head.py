"""Frozen head: a classifier's head that no run trains and no file holds, made of the base and the labels' names alone.

A trained head of tens of thousands of numbers can solve an easy task alone; this one takes no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layer import bare_head
from polyvera.adapter.targets import find_head
from polyvera.errors import RecipeError
from polyvera.model.config import TOKEN_CLASSIFICATION, kind_of, labels_of, pad_token
from polyvera.model.inference import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from polyvera.adapter.adapter import Adapter
    from polyvera.adapter.spec import AdapterSpec
    from polyvera.model.load import Base

SHARPNESS = 20.0  # a logit, where what the head reads points in the direction of its class
KNOWN_SETS = 256  # of labels, whose readings are kept


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One way to make a head.

    directions: (what is read of each name, less their mean; a seed) -> (classes, width). reads_names: whether they
    depend on the names, so that tenants of a fleet that share a head must share these too.
    """

    directions: Callable[[Tensor, int], Tensor]
    reads_names: bool


def _drawn(apart: Tensor, seed: int) -> Tensor:
    return torch.randn(apart.shape, generator=torch.Generator().manual_seed(seed))


HEADS: Mapping[str, HeadRow] = MappingProxyType(
    {
        "labels": HeadRow(lambda apart, seed: apart, reads_names=True),
        "random": HeadRow(_drawn, reads_names=False),
    }
)


class LabelReader:
    """What the last layer of a base's head gets of labels' names, (labels, width) fp32 on the CPU. For any thread.

    Raises RecipeError for a model without a head.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.read = lru_cache(maxsize=KNOWN_SETS)(self._read)

    @property
    def last_layer(self) -> tuple[str, nn.Linear]:
        """The last linear layer of the head and its name in the bare model. Raises RecipeError where there is none."""
        layers = [
            (f"{head}.{name}" if name else head, layer)
            for head in find_head(self.model)
            for name, layer in bare_head(self.model.get_submodule(head)).named_modules()
            if isinstance(layer, nn.Linear)
        ]
        if not layers:
            raise RecipeError(f"{type(self.model).__name__} has no head to freeze: leave head out")
        return layers[-1]

    def _read(self, labels: tuple[str, ...]) -> Tensor:
        seen: list[Tensor] = []
        thread = get_ident()  # an engine's steps may go on meanwhile

        def see(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:
                seen.append(given[0])

        rows = [torch.tensor(self.tokenizer(re.sub(r"[_\W]+", " ", name))["input_ids"]) for name in labels]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        ids = pad_sequence(rows, batch_first=True, padding_value=pad_token(self.model, self.tokenizer))
        hook = self.last_layer[1].register_forward_pre_hook(see)
        try:
            with evaluating(self.model):
                self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device))
        finally:
            hook.remove()
        return self._pooled(seen[0].float().cpu(), mask).clone()

    def _pooled(self, seen: Tensor, mask: Tensor) -> Tensor:
        """(rows, width) of what a layer gets for each token: their mean where tokens are labelled, else the last."""
        if seen.dim() == 2:
            return seen
        if kind_of(self.model) == TOKEN_CLASSIFICATION:
            return (seen * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return seen[torch.arange(len(seen)), mask.sum(1) - 1]


def made_head(word: str, seed: int, labels: tuple[str, ...], reader: LabelReader) -> dict[str, Tensor]:
    """The tensors of the head's last layer by full name. Raises RecipeError where the base reads all names alike.

    A logit is SHARPNESS where what is read lies as far from the names' mean as they do, in the direction of its class.
    """
    name, layer = reader.last_layer
    read = reader.read(labels)
    centre = read.mean(0)
    apart = read - centre
    if not bool((apart.norm(dim=1) > 0).all()):
        raise RecipeError("the base reads all of the labels' names alike: train the head instead of freezing it")
    directions = nn.functional.normalize(HEADS[word].directions(apart, seed), dim=1)
    weight = SHARPNESS / float(apart.norm(dim=1).mean()) * directions
    return {f"{name}.weight": weight} | ({} if layer.bias is None else {f"{name}.bias": -weight @ centre})


@contextmanager
def frozen_head(base: Base, spec: AdapterSpec | None) -> Iterator[None]:
    """The base with the head that a spec names, where it names one; with its own again afterwards."""
    if spec is None or spec.frozen_head is None:
        yield
        return
    reader = LabelReader(base.model, base.tokenizer)
    made = made_head(spec.frozen_head, spec.seed, labels_of(base.model.config), reader)
    own = head_tensors(base.model, find_head(base.model))
    before = {key: own[key].detach().clone() for key in made}
    _write(own, made)
    try:
        yield
    finally:
        _write(own, before)


def _write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in values.items():
            own[key].copy_(value)


def with_head(adapter: Adapter, reader: LabelReader) -> Adapter:
    """The adapter with the head that its spec names, as if it had been trained; itself where it names none.

    reader: of a model for as many labels as the adapter has, or more or fewer. Raises RecipeError as made_head().
    """
    word = adapter.spec.frozen_head
    if word is None:
        return adapter
    own = find_head(reader.model)
    head = {**head_tensors(reader.model, own), **made_head(word, adapter.spec.seed, adapter.labels, reader)}
    layout = replace(adapter.layout, head=tuple(sorted((key, tuple(t.shape)) for key, t in head.items())))
    values = {s.key: adapter.flat[s.offset : s.offset + s.size] for s in adapter.layout.stacks}
    values |= {key: tensor.detach().float().cpu().flatten() for key, tensor in head.items()}
    flat = torch.cat([values[stack.key] for stack in layout.stacks])
    return replace(adapter, spec=replace(adapter.spec, head=own), layout=layout, flat=flat)
