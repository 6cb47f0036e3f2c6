"""Forward: one step's tokens through the model, packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyvera.adapter.route import Route, route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.generation.attention import attending
from polyvera.engine.generation.batch import Batch, make_batch
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_ROUTE: tuple[tuple[int, ...], Route] = ((), Route(BASE_SLOT))


class Forward:
    """Computes steps. kv_cache: of limits.max_rows rows. num_tokens: of the vocabulary that may be chosen."""

    def __init__(
        self, model: PreTrainedModel, adapters: AdapterCache, kv_cache: KVCache, limits: Limits, num_tokens: int
    ) -> None:
        self._model: Any = model
        self._adapters, self._kv_cache, self._num_tokens = adapters, kv_cache, num_tokens
        self._route = NO_ROUTE

    def __call__(self, decoding: Sequence[Chunk], reading: Sequence[Chunk]) -> tuple[Sequence[Row], Tensor]:
        """The rows whose next tokens can now be chosen, and the logits of each, (rows, vocabulary)."""
        batch = make_batch(decoding, reading, self._kv_cache.context, self._model.device)
        return batch.rows, self._packed(batch)

    def forget(self) -> None:
        """Says that a slot may be another adapter's when its number comes again."""
        self._route = NO_ROUTE

    def _packed(self, batch: Batch) -> Tensor:
        """(rows, vocabulary)"""
        self._kv_cache.slot_mapping = batch.slot_mapping
        keep = batch.last if len(batch.last) else batch.last.new_zeros(1)
        is_whole = self._adapters.adapts_output  # that layer too then has its adapter for every token
        with route(self._routed(batch)), attending(batch.attention):
            out = self._model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                past_key_values=self._kv_cache,
                use_cache=True,
                logits_to_keep=0 if is_whole else keep,
            )
        logits = out.logits[0, keep] if is_whole else out.logits[0]
        return logits[: len(batch.rows), : self._num_tokens]  # type: ignore[no-any-return]

    def _routed(self, batch: Batch) -> Route:
        """The batch's route, the last one again where nothing has changed, with all that was gathered for it."""
        if not batch.is_decoding:
            return _route_of(batch.slots, once=True)
        if self._route[0] != batch.slots:
            self._route = (batch.slots, _route_of(batch.slots, once=False))
        return self._route[1]


def _route_of(slots: tuple[int, ...], once: bool) -> Route:
    """All rows of one slot need no gathering."""
    return Route(slots[0] if len(set(slots)) == 1 else torch.tensor([slots]), held=True, once=once)
