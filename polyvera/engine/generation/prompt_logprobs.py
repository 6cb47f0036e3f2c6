"""The log-probabilities of prompts: what the model thinks of each token that it was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyvera.engine.generation.request import Token
from polyvera.engine.generation.rows import Chunk


def score_prompts(chunks: Sequence[Chunk], logits: Tensor) -> None:
    """Adds to each chunk's row the prompt's tokens that follow those of the chunk.

    logits: (tokens of all chunks, vocabulary), of the tokens that follow.
    """
    parts = torch.split(logits, [chunk.stop - chunk.start for chunk in chunks])
    for chunk, part in zip(chunks, parts, strict=True):
        prompt = chunk.row.request.prompt
        chunk.row.prompt_tokens += _scored(prompt[chunk.start + 1 : chunk.stop + 1], part, _num_top(chunk))


def _scored(tokens: Sequence[int], logits: Tensor, num_top: int) -> list[Token]:
    logprobs = logits[: len(tokens)].float().log_softmax(-1)
    own = logprobs.gather(-1, logprobs.new_tensor(tokens).long()[:, None])[:, 0].tolist()
    values, others = logprobs.topk(num_top)
    top = zip(others.tolist(), values.tolist(), strict=True)
    return [
        Token(token, logprob, tuple(zip(*pair, strict=True)))
        for token, logprob, pair in zip(tokens, own, top, strict=True)
    ]


def _num_top(chunk: Chunk) -> int:
    return chunk.row.request.params.prompt_logprobs or 0
