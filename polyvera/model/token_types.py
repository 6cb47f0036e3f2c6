"""Token types: which of two texts each token is of, found from the tokens alone, as a server that gets tokens must."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def separator(tokenizer: Tokenizer) -> int | None:
    """The token behind which the second of two texts begins, in its token_type_ids too; None where it has no such."""
    sep = tokenizer.sep_token_id
    two = tokenizer("a", "a", verbose=False)
    if sep is None or "token_type_ids" not in two:
        return None
    own = second_text(torch.tensor([two["input_ids"]]), sep)[0].tolist()
    return int(sep) if own == list(two["token_type_ids"]) else None


def second_text(ids: Tensor, separator: int) -> Tensor:
    """token_type_ids of (rows, tokens): 1 behind the first separator of a row, else 0."""
    behind = (ids == separator).cumsum(-1) - (ids == separator).long()
    return behind.clamp(max=1)
