"""What a decoder reads while it learns to write: a first token, and each answer without its last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polyvera.model.config import ENCODER_DECODER, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START = "decoder_start_token_id"


def decoder_inputs(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """(rows, tokens) of answers, -100 behind their ends, to what the decoder reads; None for a model without one.

    By the family's own rule where transformers has it, since some begin with a language.
    """
    if kind_of(model) != ENCODER_DECODER:
        return None
    config: Any = model.config
    by_family: Callable[[Tensor], Tensor] | None = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return by_family or partial(shifted, start=getattr(config, START), pad=config.pad_token_id)


def shifted(labels: Tensor, start: int, pad: int) -> Tensor:
    """The labels one place to the right."""
    found = labels.roll(1, 1)
    found[:, 0] = start
    return found.masked_fill(found < 0, pad)


def set_start_token(model: PreTrainedModel) -> None:
    """What the decoder reads first, where its configuration does not say: as generate() begins, else the pad token."""
    config: Any = model.config
    if kind_of(model) == ENCODER_DECODER and getattr(config, START, None) is None:
        known = getattr(model.generation_config, START, None)
        setattr(config, START, config.pad_token_id if known is None else known)
