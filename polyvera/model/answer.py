"""Meaning: what the outputs of an adapter's head stand for; ANSWERS: what they say of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polyvera.model.config import TOKEN_CLASSIFICATION, kind_of, trained_labels
from polyvera.model.task import LABEL, LM, TASKS, THRESHOLD, TOKEN_LABEL, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from polyvera.adapter.adapter import Adapter


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a head is for.

    task: a key of TASKS. labels: of its outputs. threshold: the probability from which one of several labels counts.
    """

    task: str = LM
    labels: tuple[str, ...] = ()
    threshold: float = THRESHOLD

    @property
    def row(self) -> Task:
        """The row of its task."""
        return TASKS[self.task]

    def scores(self, logits: Tensor) -> Tensor:
        """(..., outputs, perhaps more that are not its own) -> (..., its outputs): probabilities, or numbers."""
        return ANSWERS[self.row.answer].scores(logits[..., : len(self.labels)].float())

    def answer(self, scores: Tensor) -> Any:
        """What the scores of one text say: a label, several labels, a number, or a tag for each word."""
        return ANSWERS[self.row.answer].says(scores, self)


OF_TEXT = Meaning()


@dataclass(frozen=True, slots=True)
class Readout:
    """How outputs are read: logits to scores, and the scores of one text to what they say."""

    scores: Callable[[Tensor], Tensor]
    says: Callable[[Tensor, Meaning], Any]


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _label(scores: Tensor, meaning: Meaning) -> str:
    return meaning.labels[int(scores.argmax(-1))]


def _labels(scores: Tensor, meaning: Meaning) -> tuple[str, ...]:
    return tuple(
        label for label, score in zip(meaning.labels, scores.tolist(), strict=True) if score >= meaning.threshold
    )


def _tags(scores: Tensor, meaning: Meaning) -> tuple[str, ...]:
    return tuple(meaning.labels[i] for i in scores.argmax(-1).tolist())


ANSWERS: Mapping[str, Readout] = MappingProxyType(
    {
        "label": Readout(_softmax, _label),
        "labels": Readout(lambda logits: logits.sigmoid(), _labels),
        "number": Readout(lambda logits: logits, lambda scores, meaning: float(scores[0])),
        "tags": Readout(_softmax, _tags),
    }
)


def meaning_of(adapter: Adapter) -> Meaning:
    """What an adapter's head is for; one with labels and no task chooses one of them."""
    return Meaning(adapter.task or (LABEL if adapter.labels else LM), adapter.labels, adapter.threshold)


def trained_meaning(model: PreTrainedModel) -> Meaning:
    """What the head that came with a checkpoint is for; without labels where it has none that was trained."""
    task = TOKEN_LABEL if kind_of(model) == TOKEN_CLASSIFICATION else task_of_config(model.config)
    return Meaning(task, trained_labels(model))


def task_of_config(config: PreTrainedConfig) -> str:
    """The task that a configuration's problem_type names, LABEL where it names none."""
    named = getattr(config, "problem_type", None)
    return next((name for name, row in TASKS.items() if named and row.problem_type == named), LABEL)
