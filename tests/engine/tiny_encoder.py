"""A tiny encoder, its adapters with and without heads, and what each of them gives alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from tiny_serve import LONGEST_WAIT, make_prompt, make_tokenizer, until
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.fingerprint import fingerprint
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_head
from polyvera.engine.embedding.embedder import Embedder
from polyvera.engine.embedding.request import Classes

LIKE_BERT = {
    "vocab_size": len(make_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": 2,
}


def make_bert(num_labels: int = 2, kind: type[PreTrainedModel] = BertForSequenceClassification) -> PreTrainedModel:
    """The same backbone for every number of classes; the head is drawn last."""
    torch.manual_seed(0)
    return kind(BertConfig(num_labels=num_labels, **LIKE_BERT)).eval()


def with_classes(model: PreTrainedModel, num: int) -> PreTrainedModel:
    """The same model with a head for so many classes, as training loads it."""
    config = copy.deepcopy(model.config)
    config.num_labels = num
    other = type(model)(config).eval()
    own = {k: v for k, v in model.state_dict().items() if v.shape == other.state_dict()[k].shape}
    other.load_state_dict(own, strict=False)
    assert fingerprint(other) == fingerprint(model)
    return other


def make_encoder_adapter(
    model: PreTrainedModel, spec: AdapterSpec, seed: int, labels: tuple[str, ...] = (), size: float = 0.2
) -> Adapter:
    """A trained adapter's stand-in; with labels it has a head for them, made on a model of so many classes."""
    model = with_classes(model, len(labels)) if labels else model
    spec = replace(spec, head=find_head(model)) if labels else spec
    bank = inject(model, spec)
    noise = size * torch.randn(bank.flat.shape, generator=torch.Generator().manual_seed(seed))
    bank._write(0, bank.take(bank.first) + noise[0])
    adapter = extract(bank, bank.first, model)
    eject(model)
    return replace(adapter, labels=labels)


class Alone:
    """What one adapter gives for one text, with nothing else in the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = copy.deepcopy(model)

    def vector(self, adapter: Adapter | None, tokens: Sequence[int]) -> Tensor:
        """The normalised mean of the backbone's last hidden states."""
        model = self._holding(adapter)
        with torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([list(tokens)])).last_hidden_state[0]
        return F.normalize(hidden.mean(0), dim=0)

    def probs(self, adapter: Adapter, tokens: Sequence[int]) -> Tensor:
        """The softmax of the logits of a model with so many classes."""
        model = self._holding(adapter)
        with torch.no_grad():
            return torch.softmax(model(input_ids=torch.tensor([list(tokens)])).logits[0], -1)

    def _holding(self, adapter: Adapter | None) -> nn.Module:
        model = copy.deepcopy(self._model)
        if adapter is not None:
            if adapter.labels and adapter.layout.head:
                model = with_classes(model, len(adapter.labels))
            load(model, adapter)
        return model


def assert_nothing_is_left(encoder: Embedder) -> None:
    workload, adapters = encoder._core.workload, encoder._adapters
    until(lambda: not encoder._core.is_busy and not workload.scheduler.running)
    until(lambda: not list(workload.scheduler.waiting()))
    assert encoder._queue.num_waiting == encoder._queue.num_open == 0
    assert all(entry.num_users == 0 for entry in adapters._taken.values())


def texts(seed: int, num: int = 3) -> list[list[int]]:
    return [make_prompt(100 * seed + i, 1, 60) for i in range(num)]


def got(future: Future[Any]) -> Any:
    return future.result(LONGEST_WAIT)


def assert_vectors(found: torch.Tensor, alone: Alone, adapter: Adapter | None, rows: list[list[int]]) -> None:
    expected = torch.stack([alone.vector(adapter, row) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def assert_classes(found: Classes, alone: Alone, adapter: Adapter, rows: list[list[int]]) -> None:
    expected = torch.stack([alone.probs(adapter, row) for row in rows])
    assert found.labels == adapter.labels
    torch.testing.assert_close(found.probs, expected, atol=1e-5, rtol=0)
