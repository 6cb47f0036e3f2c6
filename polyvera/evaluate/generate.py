"""generate: answers to a list of prompts, each from its own slot, in batches that may mix adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.inject import slot_table
from polyvera.adapter.route import route
from polyvera.data.batching import padded
from polyvera.data.row_files import check_unicode
from polyvera.errors import DataError, PromptError, SlotError, SpecError
from polyvera.evaluate.reading import Reading, reading_of
from polyvera.model.config import (
    CAUSAL_LM,
    ENCODER_DECODER,
    context_length,
    end_tokens,
    kind_of,
    pad_token,
    vocabulary_size,
)
from polyvera.model.inference import by_length, evaluating, until_end
from polyvera.model.message import Conversation
from polyvera.model.prompt import Prompt, check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RowSlots = int | str | Sequence[int | str] | None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    slots: RowSlots = None,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    num_return_sequences: int = 1,
) -> list[str]:
    """The answers to prompts, without the prompts, in their order.

    model, tokenizer: of a causal language model or an encoder-decoder, with or without adapters in it.
    prompts: N texts, or conversations of Messages.
    slots: a slot or its name for all, or N of them; None is the model's only adapter, or the base.
    max_new_tokens: the most tokens of an answer.
    batch_size: prompts in one batch.
    temperature: 0 takes the likeliest token; else top_p samples from so much of the probability.
    num_beams: of beam search.
    num_return_sequences: answers to each prompt, side by side.

    Raises SlotError for an unknown slot, SpecError for a model that writes no text, DataError for a prompt that is too
    long or has no template, or for settings that would have no effect.
    """
    _check_writes(model)
    chosen = row_slots(model, slots, len(prompts))
    reading = reading_of(model)
    _check_unicode(prompts)
    rows = [reading.ids(tokenizer, prompt) for prompt in prompts]
    _check_lengths(reading, rows, max_new_tokens, context_length(model, tokenizer))
    _check_tokens(tokenizer, rows, vocabulary_size(model))
    settings = _settings(model, tokenizer, temperature, top_p, num_beams, num_return_sequences)
    answers: list[list[str]] = [[] for _ in rows]
    ends = end_tokens(model, tokenizer)
    answer: Any = model.generate
    with evaluating(model), _own_settings(model):
        for batch in by_length([len(row) for row in rows], batch_size):
            ids = padded([rows[i] for i in batch], settings["pad_token_id"], left=reading.is_prefix)
            mask = padded([[1] * len(rows[i]) for i in batch], 0, left=reading.is_prefix)
            own = [chosen[i] for i in batch]
            given = reading.inputs(model, tokenizer, ids.to(model.device), mask.to(model.device), own)
            # each forward has num_beams or num_return_sequences rows for every prompt, side by side
            with route([slot for slot in own for _ in range(max(num_beams, num_return_sequences))]):
                tokens = answer(**given, max_new_tokens=max_new_tokens, **settings)
            tokens = tokens[:, reading.num_before(ids.shape[1]) :]
            texts = tokenizer.batch_decode([until_end(row, ends) for row in tokens.tolist()], skip_special_tokens=True)
            for j, i in enumerate(batch):
                answers[i] = texts[j * num_return_sequences : (j + 1) * num_return_sequences]
    return [text for several in answers for text in several]


def _check_writes(model: PreTrainedModel) -> None:
    if kind_of(model) not in (CAUSAL_LM, ENCODER_DECODER):
        raise SpecError(
            f"{type(model).__name__} answers with labels or vectors and writes no text: score rows with `eval`, or ask "
            "a server's /v1/classify or /v1/embeddings"
        )


def _check_unicode(prompts: Sequence[Prompt]) -> None:
    for number, prompt in enumerate(prompts, 1):
        turns = prompt.messages if isinstance(prompt, Conversation) else prompt
        for text in [turns] if isinstance(turns, str) else [turn.content for turn in turns]:
            check_unicode(text, f"prompt {number}")


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Lets generate() obey what it is given alone, as the engine does: a generation_config.json sets no defaults."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = before


def row_slots(model: PreTrainedModel, slots: RowSlots, num_rows: int) -> list[int]:
    """One slot for each row. Raises SlotError for a wrong number of them, or one that the model has not."""
    table = slot_table(model)
    if slots is None:
        slots = table.only()
    known = [slots] if isinstance(slots, int | str) else list(slots)
    chosen = [table.slot_named(one) for one in known] * (num_rows if isinstance(slots, int | str) else 1)
    if len(chosen) != num_rows:
        raise SlotError(f"{len(chosen)} slots for {num_rows} rows: give one slot for all, or one for each row")
    table.check(torch.tensor(chosen, dtype=torch.long))
    return chosen


def _check_lengths(reading: Reading, rows: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None) -> None:
    for number, row in enumerate(rows, 1):
        if limit is not None and reading.num_tokens(row, max_new_tokens) > limit:
            raise DataError(
                f"prompt {number} has {len(row)} tokens, and with max_new_tokens={max_new_tokens} that is more than "
                f"the {limit} tokens that the model reads"
            )
        if not row:
            raise DataError(f"prompt {number} has no tokens: there is nothing to answer")


def _check_tokens(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], num_tokens: int) -> None:
    for number, row in enumerate(rows, 1):
        try:
            check_ids(tokenizer, row, num_tokens)
        except PromptError as error:
            raise PromptError(f"prompt {number}: {error}") from error


def _settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    top_p: float,
    beams: int,
    several: int,
) -> dict[str, Any]:
    sampled = temperature > 0.0
    if top_p != 1.0 and not sampled:
        raise DataError(f"top_p={top_p:g} has no effect on the likeliest token: set temperature, or leave it out")
    if several > 1 and not sampled and beams < several:
        raise DataError(
            f"num_return_sequences={several} would be {several} equal answers: set temperature, or num_beams"
        )
    return {
        "do_sample": sampled,
        "temperature": temperature if sampled else None,
        "top_p": top_p if sampled else None,
        "top_k": 0 if sampled else None,
        "num_beams": beams,
        "num_return_sequences": several,
        "use_cache": True,
        "pad_token_id": pad_token(model, tokenizer),
        "eos_token_id": sorted(end_tokens(model, tokenizer)) or None,
    }
