"""text_vectors: what an encoder makes of texts, pooled as its folder says, as the server's embeddings are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.errors import DataError
from polyvera.model.pooling import Pooling, pooling_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_vectors(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """(texts, width) of length 1, in fp32. inputs: a Collator's batch without its labels. Raises DataError."""
    bare: Any = getattr(model, "module", model)  # of what spreads a batch over processes
    hidden: Tensor = bare.base_model(**inputs)[0]
    mask = inputs.get("attention_mask")
    return F.normalize(
        _pooling(bare.name_or_path)(hidden, torch.ones_like(hidden[..., 0]) if mask is None else mask), dim=-1
    )


@lru_cache(maxsize=8)
def _pooling(name: str) -> Pooling:
    found = pooling_of(name)
    if found.refusal:
        raise DataError(f"this model gives no embeddings here: {found.refusal}")
    return found
