"""Forward: one step's tokens through the model: by captured graphs for rows that decode, else packed."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.pinned_memory import to_device
from polyvera.adapter.route import Route, route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.engine.adapter_cache import AdapterCache
from polyvera.engine.generation.attention import AttentionMetadata, attending
from polyvera.engine.generation.batch import Batch, make_batch
from polyvera.engine.generation.decode_graph import DecodeGraphs, DecodeInputs, DecodeToken
from polyvera.engine.generation.kv_cache import KVCache
from polyvera.engine.generation.prompt_logprobs import score_prompts
from polyvera.engine.generation.rows import Chunk, Row
from polyvera.engine.generation.sampler import Scores
from polyvera.engine.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a GPU rather reads the keys of a chunk again for each of its tokens than begins another span.
SINGLE_PAIRS = 1 << 16
NO_ROUTE: tuple[tuple[int, ...], Route] = ((), Route(BASE_SLOT))


class Forward:
    """Computes steps. kv_cache: of limits.max_rows rows. num_tokens: of the vocabulary that may be chosen."""

    def __init__(
        self, model: PreTrainedModel, adapters: AdapterCache, kv_cache: KVCache, limits: Limits, num_tokens: int
    ) -> None:
        self._model: Any = model
        self._adapters, self._kv_cache, self._num_tokens = adapters, kv_cache, num_tokens
        self._route = NO_ROUTE
        self._can_keep = "logits_to_keep" in signature(self._model.forward).parameters
        has_cuda = len({p.device for p in model.parameters()}) == 1 and model.device.type == "cuda"
        self._graphs: DecodeGraphs[Bank] | None = None
        self._single_pairs = SINGLE_PAIRS if has_cuda or limits.decode_graphs else 0
        if has_cuda if limits.decode_graphs is None else limits.decode_graphs:
            self._graphs = DecodeGraphs(self._decode, limits.max_rows, kv_cache.context, model.device, has_cuda)

    def __call__(self, decoding: Sequence[Chunk], reading: Sequence[Chunk]) -> tuple[list[Row], Scores]:
        """The rows whose next tokens can now be chosen, and the scores of each."""
        parts: list[tuple[Sequence[Row], Scores]] = []
        if self._graphs is not None and decoding:
            parts.append(([chunk.row for chunk in decoding], self._replayed(self._graphs, decoding)))
            decoding = ()
        if decoding or reading:
            device, context = self._model.device, self._kv_cache.context
            batch = make_batch(decoding, reading, context, device, self._single_pairs)
            parts.append((batch.rows, Scores.of(self._packed(batch))))
        (rows, scores), *others = parts
        for more, found in others:
            rows, scores = [*rows, *more], scores.followed_by(found)
        return list(rows), scores

    def forget(self, row: Row) -> None:
        """Says that a row has ended: its place is another's next, and its slot may be another adapter's."""
        self._kv_cache.clear(row.index, row.num_computed)
        self._route = NO_ROUTE

    def _replayed(self, graphs: DecodeGraphs[Bank], decoding: Sequence[Chunk]) -> Scores:
        tokens = [DecodeToken(c.row.tokens(c.start, c.stop)[0], c.start, c.row.index, c.row.slot) for c in decoding]
        banks = self._adapters.banks
        holders = [banks[0].table.holder(slot) for slot in {token.slot for token in tokens} - {BASE_SLOT}]
        used = {id(holder[0]) for holder in holders if holder is not None}
        state = tuple((id(bank), bank.num_slots, bank.flat.data_ptr()) for bank in banks)
        return graphs(tokens, [bank for bank in banks if id(bank) in used], state)

    def _decode(self, inputs: DecodeInputs, banks: Sequence[Bank]) -> Tensor:
        """(rows, vocabulary)"""
        chosen = Route.on_device(inputs.slots, banks) if banks else Route(BASE_SLOT)
        attention = AttentionMetadata((), inputs.positions[0], inputs.rows)
        return self._logits(inputs.ids, inputs.positions, inputs.slot_mapping, attention, chosen, 0)

    def _packed(self, batch: Batch) -> Tensor:
        """(rows, vocabulary)"""
        keep = batch.last if len(batch.last) or batch.scored else batch.last.new_zeros(1)
        if batch.scored:
            keep = torch.cat((keep, to_device(batch.scored_at, keep.device)))
        # An adapted output layer too has its adapter for every token.
        is_whole = self._adapters.adapts_output or not self._can_keep
        given = batch.ids, batch.positions, batch.slot_mapping, batch.attention, self._routed(batch)
        logits = self._logits(*given, 0)[keep] if is_whole else self._logits(*given, keep)
        if batch.scored:
            score_prompts(batch.scored, logits[len(batch.rows) :])
        return logits[: len(batch.rows)]

    def _logits(
        self,
        ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention: AttentionMetadata,
        chosen: Route,
        keep: Tensor | int,
    ) -> Tensor:
        """(tokens that are kept, vocabulary); keep: 0 for all."""
        self._kv_cache.slot_mapping = slot_mapping
        kept = {"logits_to_keep": keep} if self._can_keep else {}
        with route(chosen), attending(attention):
            out = self._model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=self._kv_cache,
                use_cache=True,
                **kept,
            )
        return out.logits[0][:, : self._num_tokens]  # type: ignore[no-any-return]

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
