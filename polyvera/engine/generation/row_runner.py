"""RowRunner: a model whose rows cannot be packed; each is computed by itself, with the cache that the model makes.

So are served models with attention of their own (Falcon, BLOOM, MPT), with states beside keys and values (Mamba, Jamba,
Qwen3-Next) and with keys and values of two widths (DeepSeek). A step has a forward for each row, so it is slower, and
a row is what the model makes of it alone. A model that makes no cache reads the whole row again for each token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject
from polyvera.adapter.route import Route, route
from polyvera.adapter.targets import base_layers
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.engine.generation.prompt_logprobs import score_prompts
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.generation.sampler import Scores
from polyvera.engine.limits import Limits
from polyvera.engine.trial import check_close, check_sites, check_text, trial_rows
from polyvera.errors import ServeError
from polyvera.model.answer import Meaning
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
CACHES = ("past_key_values", "cache_params", "state")  # what transformers' models call what they keep of a row


@dataclass(slots=True)
class RowState:
    """What was read of a row: its tokens, and the model's cache of them by the name of its argument, if it has one."""

    tokens: list[int] = field(default_factory=list)
    cache: dict[str, Any] = field(default_factory=dict)


class RowRunner:
    """Calls the model with one row at a time until undo(). Raises ServeError for a model that answers otherwise then.

    reason: why its rows cannot be packed. layers: those that an adapter may be of, all linear ones.
    """

    def __init__(self, model: PreTrainedModel, context: int | None, reason: ServeError) -> None:
        self._model: Any = model
        self._arguments = signature(model.forward).parameters
        self._has_cache, self._is_own = True, False
        self._was_training = model.training
        self._hook = model.register_forward_pre_hook(self._check_own)
        self.layers = set(base_layers(model))
        model.train(False)
        try:
            self._try(trial_rows(model, context), reason)
        except BaseException:
            self.undo()
            raise
        log.warning(
            "the rows of %s cannot be packed: each is computed by itself, which is slower", type(model).__name__
        )

    def check(self, ref: AdapterRef, adapter: Adapter) -> tuple[Adapter, Meaning]:
        """The adapter, for text. Raises LayoutError for one that writes none, or of other layers."""
        check_text(ref, adapter)
        check_sites(ref, adapter, self.layers)
        return adapter, Meaning()

    def undo(self) -> None:
        """The model as it was, without the banks that were put in."""
        self._hook.remove()
        eject(self._model)
        self._model.train(self._was_training)

    def forward(self, adapters: AdapterCache, kv_cache: KVCache, limits: Limits, num_tokens: int) -> RowForward:
        """What computes the steps."""
        return RowForward(self, num_tokens)

    def read(self, state: RowState, tokens: Sequence[int], *, keep_all: bool = True) -> Tensor:
        """The next tokens of a row to their logits, (tokens, vocabulary), or (1, vocabulary) of the last."""
        state.tokens += tokens
        new = tokens if state.cache else state.tokens
        given = self._given(state, len(new)) | ({} if keep_all else {"logits_to_keep": 1})
        self._is_own = True
        try:
            out = self._model(
                input_ids=torch.tensor([list(new)], device=self._model.device),
                **{name: value for name, value in given.items() if name in self._arguments},
                **state.cache,
            )
        finally:
            self._is_own = False
        caches = {name: cache for name in CACHES if (cache := getattr(out, name, None)) is not None}
        state.cache = caches if self._has_cache else {}
        logits: Tensor = out.logits[0, -len(tokens) :]
        return logits if keep_all else logits[-1:]

    def _given(self, state: RowState, num_new: int) -> dict[str, Any]:
        total, device = len(state.tokens), self._model.device
        return {
            "attention_mask": torch.ones(1, total, dtype=torch.long, device=device),
            "position_ids": torch.arange(total - num_new, total, device=device)[None],
            "use_cache": self._has_cache,
        }

    def _try(self, rows: Sequence[Tensor], reason: ServeError) -> None:
        """Compares rows that are read in pieces, by turns, with the model's own forward of each."""
        try:
            with torch.inference_mode():
                expected = [self.read(RowState(), row.tolist()) for row in rows]
                self._compare(rows, expected)
        except Exception as error:
            if self._has_cache:
                self._has_cache = False
                self._try(rows, reason)
                return
            raise ServeError(
                f"{reason}, and by itself it is not read in pieces as it is whole: no engine serves it"
            ) from error

    def _compare(self, rows: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        states = [RowState() for _ in rows]
        pieces = [torch.split(row, [len(row) - 2, 1, 1]) for row in rows]
        for part in range(3):
            for state, several, whole in zip(states, pieces, expected, strict=True):
                found = self.read(state, several[part].tolist())
                check_close(
                    self._model, found, whole[len(state.tokens) - len(found) : len(state.tokens)], "read in pieces"
                )

    def _check_own(self, module: nn.Module, given: object) -> None:
        if not self._is_own:
            raise ServeError(
                "this model belongs to a running engine: ask the engine, or stop it before you call the model"
            )


class RowForward:
    """Computes steps: of each row whose next token can be chosen, all that was not read yet, by itself."""

    def __init__(self, runner: RowRunner, num_tokens: int) -> None:
        self._runner, self._num_tokens = runner, num_tokens
        self._states: dict[int, RowState] = {}

    def __call__(self, decoding: Sequence[Chunk], reading: Sequence[Chunk]) -> tuple[list[Row], Scores]:
        """The rows whose next tokens can now be chosen, and the scores of each."""
        ready = [chunk for chunk in (*decoding, *reading) if chunk.is_last]
        logits = [self._read(chunk) for chunk in ready]
        return [chunk.row for chunk in ready], Scores.of(
            torch.cat(logits) if logits else torch.empty(0, self._num_tokens)
        )

    def forget(self, row: Row) -> None:
        """Says that a row has ended."""
        self._states.pop(row.index, None)

    def _read(self, chunk: Chunk) -> Tensor:
        """(1, vocabulary)"""
        row = chunk.row
        state = self._states.setdefault(row.index, RowState())
        first, tokens = len(state.tokens), row.tokens(len(state.tokens), chunk.stop)
        is_scored = row.request.is_scored and not first
        with route(Route(row.slot, held=True, once=True)):
            logits = self._runner.read(state, tokens, keep_all=is_scored)[:, : self._num_tokens]
        if is_scored:
            score_prompts((Chunk(row, first, chunk.stop),), logits)
        return logits[-1:]
