"""freeze_head: a classifier's head that no run trains: the directions of its labels' names, as the base reads them.

A trained head of tens of thousands of numbers can solve an easy task alone; this one takes no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.data.batching import Collator
from polyvera.errors import RecipeError
from polyvera.model.config import labels_of
from polyvera.model.inference import evaluating
from polyvera.model.load import Base

SHARPNESS = 20.0  # a logit, where what the head reads points in the direction of its class
NUM_ROWS = 64


def freeze_head(base: Base, rows: Sequence[Mapping[str, Any]]) -> None:
    """Overwrites the head's last layer: of each class the direction in which its name lies from the mean of all names.

    rows: in tokens, some of those that will be trained on; what the head reads of them is centred. Raises RecipeError
    for a model without a head, or whose outputs have no names.
    """
    head, names = _last_linear(base), labels_of(base.model.config)
    if len(names) != len(head.weight):
        raise RecipeError(f"{len(head.weight)} outputs have {len(names)} names: train the head of this task")
    read, named = _read_by(head, base, rows[:NUM_ROWS]), _read_by(head, base, [_tokens(base, name) for name in names])
    centre = read.mean(0)
    apart = named - named.mean(0)
    if not bool((apart.norm(dim=1) > 0).all()):
        raise RecipeError("the base reads all of the labels' names alike: train the head instead of freezing it")
    directions = nn.functional.normalize(apart, dim=1)
    weight = SHARPNESS / float((read - centre).norm(dim=1).mean()) * directions
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(-weight @ centre)


def _tokens(base: Base, name: str) -> dict[str, Any]:
    """A label's name as a row, its words apart."""
    return {"input_ids": base.tokenizer(re.sub(r"[_\W]+", " ", name))["input_ids"], "labels": 0}


def _last_linear(base: Base) -> nn.Linear:
    layers = [m for name in base.head for m in base.model.get_submodule(name).modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise RecipeError(f"{type(base.model).__name__} has no head to freeze: leave it out")
    return layers[-1]


def _read_by(head: nn.Linear, base: Base, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The vectors (num, width) that the layer gets for the rows, of tokens their mean; fp32 on the CPU."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda layer, given: seen.append(given[0].detach().float().cpu()))
    batch = Collator.of(base.model, base.tokenizer)(rows)
    batch.pop("labels")
    try:
        with evaluating(base.model):
            base.model(**{name: tensor.to(base.model.device) for name, tensor in batch.items()})
    finally:
        hook.remove()
    mask = batch["attention_mask"].unsqueeze(2)
    return seen[0] if seen[0].dim() == 2 else (seen[0] * mask).sum(1) / mask.sum(1)
