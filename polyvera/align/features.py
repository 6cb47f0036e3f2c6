"""layer_features: one vector a text from each layer of a model, as the alignment of two models compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvera.data.row_files import read_rows
from polyvera.errors import DataError, did_you_mean
from polyvera.model.config import context_length
from polyvera.model.inference import evaluating
from polyvera.model.load import Base

BATCH, MAX_LENGTH = 16, 512
CLIPPED = 0.95  # what a layer's numbers are clipped to: this quantile of their sizes, as in the paper's code


def texts_of(source: str, column: str | None = None, limit: int | None = None) -> tuple[str, list[str]]:
    """The different texts of a column in their order, and its name; by default the first column of texts.

    Raises DataError.
    """
    rows = [row for _, row in read_rows(source)]
    known = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, str))
    chosen = column or next(iter(known), None)
    if chosen is None or chosen not in known:
        raise DataError(
            f"{source} has no column {column or 'of texts'!r}; it has {', '.join(known) or 'no texts'}"
            f"{did_you_mean(column or '', known)}"
        )
    texts = dict.fromkeys(row[chosen] for row in rows if isinstance(row.get(chosen), str) and row[chosen].strip())
    return chosen, list(texts)[:limit]


def layer_features(base: Base, texts: Sequence[str]) -> list[Tensor]:
    """(texts, width) in fp32 for the embeddings and for every layer: the mean over a text's tokens.

    Texts are cut to 512 tokens, or to what the model reads.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts: list[list[Tensor]] = []
    with evaluating(base.model):
        for first in range(0, len(order), BATCH):
            parts.append(_pooled(base, [texts[i] for i in order[first : first + BATCH]]))
    places = torch.tensor(order).argsort()
    return [torch.cat(own)[places] for own in zip(*parts, strict=True)]


def _pooled(base: Base, texts: list[str]) -> list[Tensor]:
    model: Any = base.model
    length = min(MAX_LENGTH, context_length(model, base.tokenizer) or MAX_LENGTH)
    inputs = base.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=length)
    given = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    reads = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    with torch.no_grad():
        hidden = reads(**given, output_hidden_states=True).hidden_states
    mask = given["attention_mask"][..., None].float()
    return [((h.float() * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu() for h in hidden]


def prepared(features: Tensor) -> Tensor:
    """Features (texts, width) without outliers, each of length 1: a few huge numbers would else be all that is seen."""
    sizes = features.abs().flatten()
    most = sizes.kthvalue(max(1, int(CLIPPED * len(sizes)))).values
    return F.normalize(features.clamp(-most, most), dim=1)
