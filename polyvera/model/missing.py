"""Weights that a checkpoint lacks: part of the trained head where they stand behind the backbone, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.targets import HEAD_NAMES, head_of
from polyvera.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED, STD = 0, 0.02


def missing_keys(info: Mapping[str, Any]) -> set[str]:
    """The tensors that from_pretrained() made up, from the loading info that it gives: absent, or of another shape."""
    return {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}


def untrained_head(model: PreTrainedModel, keys: Collection[str]) -> tuple[str, ...]:
    """The modules behind the backbone that those keys are of. Raises SpecError for a weight of the backbone itself."""
    heads = {key: head_of(model, key) for key in keys}
    lost = sorted(key for key, head in heads.items() if head is None)
    if lost:
        raise SpecError(
            f"its files lack {lost[0]}{f' and {len(lost) - 1} more weights' if len(lost) > 1 else ''}, without which "
            f"{type(model).__name__} answers at random: load it as what it was saved as"
        )
    return tuple(sorted({head for head in heads.values() if head is not None}))


def draw_again(model: PreTrainedModel, keys: Collection[str]) -> None:
    """Draws those of the missing weights that the fingerprint counts, the same at every load."""
    text: Any = model.config
    std = getattr(text, "initializer_range", None) or STD
    generator = torch.Generator().manual_seed(SEED)
    for key in sorted(keys):
        tensor = model.get_parameter(key) if key in dict(model.named_parameters()) else None
        if tensor is not None and tensor.dim() > 1 and key.split(".")[0] not in HEAD_NAMES:
            drawn = torch.randn(tensor.shape, generator=generator) * std
            tensor.data.copy_(drawn.to(tensor.dtype))
