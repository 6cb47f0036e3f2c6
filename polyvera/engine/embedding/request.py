"""EncodeRequest and Text: several texts that one caller asks about, and each of them on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from polyvera.errors import PolyveraError
from polyvera.model.answer import OF_TEXT, Meaning
from polyvera.model.task import EACH_TOKEN, LABEL, THRESHOLD
from polyvera.store.reference import AdapterRef

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Classes:
    """What a head says of several texts.

    labels: of the columns. probs: (texts, labels), or (tokens of all texts end to end, labels) where each is labelled;
    of one of several labels, each row's sum is 1, and a regression's numbers are its answers. task, threshold: as in
    Meaning.
    """

    labels: tuple[str, ...]
    probs: Tensor
    task: str = LABEL
    threshold: float = THRESHOLD

    @property
    def meaning(self) -> Meaning:
        """What the columns stand for."""
        return Meaning(self.task, self.labels, self.threshold)


@dataclass(eq=False, slots=True)
class EncodeRequest:
    """Texts and one adapter, None for the base.

    is_classes: whether their classes are asked for, else their vectors. done: gets a tensor (texts, width), or Classes.
    slot: its adapter's, held from its first text's turn to its end, so that all are of one version. meaning: of its
    head, known with the slot. found: each text's vector or probabilities, as they come.
    """

    rows: Sequence[Sequence[int]]
    adapter: AdapterRef | None
    tenant: str
    is_classes: bool
    number: int = field(default_factory=lambda: next(_numbers))
    submitted: float = field(default_factory=monotonic)
    slot: int | None = None
    is_over: bool = False
    meaning: Meaning = OF_TEXT
    done: Future[Any] = field(default_factory=Future)
    found: dict[int, Tensor] = field(default_factory=dict)
    weight: float = 1.0

    def texts(self) -> list[Text]:
        """Each text on its own."""
        return [Text(self, i) for i in range(len(self.rows))]

    def take(self, meaning: Meaning, numbers: Tensor) -> None:
        """All that was found elsewhere, as result() gave it there."""
        self.meaning = meaning
        if self.is_classes and meaning.row.predicts == EACH_TOKEN:
            parts: Iterable[Tensor] = torch.split(numbers, [len(row) for row in self.rows])
        else:
            parts = numbers
        self.found = dict(enumerate(parts))

    def result(self) -> Tensor | Classes:
        """All that was found, in the order of the texts."""
        parts = [self.found[i] for i in range(len(self.rows))]
        if not self.is_classes:
            return torch.stack(parts)
        whole = torch.cat(parts) if self.meaning.row.predicts == EACH_TOKEN else torch.stack(parts)
        return Classes(self.meaning.labels, whole, self.meaning.task, self.meaning.threshold)

    def end(self, error: PolyveraError | None = None) -> None:
        """Gives the caller the result or the error, unless it has gone."""
        self.is_over = True
        if not self.done.set_running_or_notify_cancel():
            return
        if error is None:
            self.done.set_result(self.result())
        else:
            self.done.set_exception(error)


@dataclass(eq=False, slots=True)
class Text:
    """One text of a request. whole: that request."""

    whole: EncodeRequest
    index: int
    admitted: float = 0.0

    @property
    def tokens(self) -> Sequence[int]:
        """Its token numbers."""
        return self.whole.rows[self.index]

    @property
    def num_tokens(self) -> int:
        """How many they are."""
        return len(self.tokens)

    @property
    def adapter(self) -> AdapterRef | None:
        """Of its request."""
        return self.whole.adapter

    @property
    def tenant(self) -> str:
        """Who asks."""
        return self.whole.tenant

    @property
    def weight(self) -> float:
        """The share of its tenant."""
        return self.whole.weight

    @property
    def number(self) -> int:
        """The request's: its texts wait for one adapter."""
        return self.whole.number


@dataclass(eq=False, slots=True)
class TextRow:
    """A text that runs, and its place in the step."""

    request: Text
    index: int
