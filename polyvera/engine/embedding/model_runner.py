"""EncoderRunner: an encoder of transformers while it is served, and what must be known of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.base_layer import is_linear
from polyvera.adapter.inject import eject, head_tensors, num_classes
from polyvera.adapter.layer import bare_head
from polyvera.adapter.targets import find_head
from polyvera.engine.trial import check_close, check_free, check_sites, recording, trying
from polyvera.errors import LayoutError, ServeError
from polyvera.model.answer import Meaning, meaning_of, trained_meaning
from polyvera.model.config import CAUSAL_LM, TOKEN_CLASSIFICATION, kind_of, pad_token, vocabulary_size
from polyvera.model.frozen_head import LabelReader, with_head
from polyvera.model.task import EACH_TOKEN, WHOLE_ROW
from polyvera.model.token_types import second_text, separator
from polyvera.store.reference import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
TRIAL_LENGTHS = (5, 3)
SHORTEST = 2  # some models that are not padded read none so short


class EncoderRunner:
    """Calls the model with padded rows until undo(). Raises ServeError for a model that it doesn't fit.

    meaning: of the checkpoint's own head, without labels where it was re-initialised. layers: the linear layers
    that see one input a row, so that each row has its adapter there. pads: whether rows of several lengths may share a
    batch; where padding changes an answer (ConvBERT, FNet), rows of one length do.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        _check(model)
        self._model: Any = model
        self._pad = pad_token(model, tokenizer)
        self._separator = separator(tokenizer)
        self._was_training = model.training
        self._head_reads = EACH_TOKEN if kind_of(model) == TOKEN_CLASSIFICATION else WHOLE_ROW
        self._labels = LabelReader(model, tokenizer)
        self._seen = local()  # by thread: loads read labels' names beside the steps
        self._hook = model.base_model.register_forward_hook(self._keep)
        self.meaning = trained_meaning(model)
        self.layers: set[str] = set()
        self.pads = True
        model.train(False)
        with trying(model, self.undo, "padded"):
            self._try()

    def __call__(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token rows to the last hidden states (rows, tokens, width), their mask, and the head's logits, if any."""
        ids, mask = self._padded(rows)
        types = {} if self._separator is None else {"token_type_ids": second_text(ids, self._separator)}
        out = self._model(input_ids=ids, attention_mask=mask, **types)
        hidden: Tensor = self._seen.__dict__.pop("hidden")
        logits = getattr(out, "logits", None)
        return hidden, mask, logits if self._head_reads == WHOLE_ROW else None

    def token_logits(self, hidden: Tensor) -> Tensor:
        """(rows, tokens, width) -> (rows, tokens, outputs), by the head of each row's slot."""
        logits: Tensor = self._model.get_submodule(find_head(self._model)[0])(hidden)
        return logits

    def check(self, ref: AdapterRef, adapter: Adapter) -> tuple[Adapter, Meaning]:
        """The adapter with its head, and what that is for. Raises LayoutError for one that padded rows cannot have."""
        check_sites(ref, adapter, self.layers)
        adapter = with_head(adapter, self._labels)
        return adapter, self._meaning_of(ref, adapter)

    def _meaning_of(self, ref: AdapterRef, adapter: Adapter) -> Meaning:
        if not adapter.layout.head:
            return Meaning()
        meaning = meaning_of(adapter)
        self._check_reads(ref, meaning)
        own = {key for key, _ in adapter.layout.head}
        missing = sorted(set(head_tensors(self._model, find_head(self._model))) - own)
        if missing and not self.meaning.labels:
            raise LayoutError(f"{ref} has only part of a head: {missing[0]} is missing, and this base lacks it, too")
        num = num_classes(self._model, adapter.layout) or len(self.meaning.labels)
        if num < 1 + meaning.row.chooses or len(adapter.labels) not in (0, num):
            raise LayoutError(f"{ref} has a head of {num} classes, but {len(adapter.labels)} labels")
        named = meaning if meaning.row.has_head else self.meaning
        return replace(named, labels=adapter.labels or tuple(f"LABEL_{i}" for i in range(num)))

    def _check_reads(self, ref: AdapterRef, meaning: Meaning) -> None:
        """Raises LayoutError for a head that would be given other hidden states than those it was trained on."""
        wanted = meaning.row.predicts
        if not meaning.row.has_head or wanted == self._head_reads:
            return
        head = find_head(self._model)
        is_plain = len(head) == 1 and is_linear(bare_head(self._model.get_submodule(head[0])))
        if wanted != EACH_TOKEN or not is_plain:
            raise LayoutError(
                f"{ref} labels each {'token' if wanted == EACH_TOKEN else 'text'}, and the head of "
                f"{type(self._model).__name__} cannot: serve it with a model that was loaded for that task"
            )

    def undo(self) -> None:
        """The model as it was, without the banks that were put in."""
        self._hook.remove()
        eject(self._model)
        self._model.train(self._was_training)

    def _keep(self, module: nn.Module, given: Any, out: Any) -> None:
        self._seen.hidden = out[0]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(rows), max(map(len, rows))), self._pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _try(self) -> None:
        """Compares rows side by side with each alone."""
        try:
            self._compare(TRIAL_LENGTHS, "padded")
        except ServeError as reason:
            self.pads = False
            for length in (*TRIAL_LENGTHS, SHORTEST):
                self._compare((length, length), "side by side")
            log.warning("rows of one length alone share a batch, which is slower: %s", reason)

    def _compare(self, lengths: Sequence[int], how: str) -> None:
        size = vocabulary_size(self._model)
        rows = [[(at + i) % size for at in range(1, length + 1)] for i, length in enumerate(lengths)]
        with torch.inference_mode():
            expected = [self([row])[0][0] for row in rows]
            with recording(self._model, self.layers, len(rows)):
                found = self(rows)[0]
        for own, alone in zip(found, expected, strict=True):
            check_close(self._model, own[: len(alone)], alone, how)


def _check(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model.config.is_encoder_decoder or kind_of(model) == CAUSAL_LM:
        raise ServeError(f"{name} generates text: a Generator serves it; an Embedder takes BERT-like models")
    check_free(model, bool(model.base_model._forward_hooks))
