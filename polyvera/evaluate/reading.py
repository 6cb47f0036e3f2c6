"""Reading: how a model is given the prompts of a batch, as the beginning of its answers or in an encoder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyvera.adapter.route import route
from polyvera.errors import PromptError
from polyvera.model.config import ENCODER_DECODER, kind_of
from polyvera.model.decoder_inputs import decoder_inputs
from polyvera.model.prompt import Prompt, passage, prompt_ids, target_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True, slots=True)
class Reading:
    """One way of reading prompts.

    ids: the tokens of a prompt. is_prefix: whether an answer is written behind them, so that they are padded on the
    left and share its length. inputs: what generate() gets of padded (rows, longest) ids, their mask, the rows' slots.
    """

    ids: Callable[[Tokenizer, Prompt], list[int]]
    is_prefix: bool
    inputs: Callable[[PreTrainedModel, Tokenizer, Tensor, Tensor, Sequence[int]], dict[str, Any]]

    def num_tokens(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """The most that a sequence may come to."""
        return len(prompt) + max_new_tokens if self.is_prefix else max(len(prompt), max_new_tokens)

    def num_before(self, longest: int) -> int:
        """Tokens that come back before an answer's own. longest: prompt of the batch."""
        return longest if self.is_prefix else 1


def reading_of(model: PreTrainedModel) -> Reading:
    """The way of that model."""
    return IN_ENCODER if kind_of(model) == ENCODER_DECODER else AS_PREFIX


def _source(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        raise PromptError("an encoder-decoder reads plain prompts, not conversations: leave chat out")
    return list(passage(tokenizer, prompt)["input_ids"])


def _encoded(model: Any, tokenizer: Tokenizer, ids: Tensor, mask: Tensor, slots: Sequence[int]) -> dict[str, Any]:
    """What the encoder made of the prompts, for all beams, and the token that the decoder reads first in training."""
    shift = decoder_inputs(model)
    assert shift is not None
    first = shift(torch.tensor([target_ids(tokenizer, "a")]))[0, 0]
    with route(slots):
        found = model.get_encoder()(input_ids=ids, attention_mask=mask)
    return {"encoder_outputs": found, "attention_mask": mask, "decoder_start_token_id": int(first)}


AS_PREFIX = Reading(
    prompt_ids, True, lambda model, tokenizer, ids, mask, slots: {"input_ids": ids, "attention_mask": mask}
)
IN_ENCODER = Reading(_source, False, _encoded)
