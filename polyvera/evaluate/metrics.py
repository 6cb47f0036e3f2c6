"""METRICS: what a task's answers are scored by, each from the rows and their answers to one number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyvera.data.row_form import Example
from polyvera.evaluate.entities import counted

Metric = Callable[[Sequence[Example], Sequence[Any]], float]


def share(hits: Iterable[bool]) -> float:
    """How many of them are true, of 1."""
    found = list(hits)
    return sum(found) / len(found)


def majority(examples: Sequence[Example]) -> float:
    """The share of rows that the best constant answer gets right."""
    votes = Counter(right for example in examples for right in {r.strip() for r in example.right})
    return votes.most_common(1)[0][1] / len(examples)


def macro_f1(truth: Sequence[str], answers: Sequence[str]) -> float:
    """The mean F1 of the classes that occur among the truths or the answers."""
    classes = sorted({*truth, *answers})
    pairs, given, wanted = Counter(zip(truth, answers, strict=True)), Counter(answers), Counter(truth)
    return sum(f1(pairs[c, c], given[c], wanted[c]) for c in classes) / len(classes)


def f1(right: float, given: float, wanted: float) -> float:
    """The harmonic mean of precision and recall; 0 where there is nothing to be right of."""
    return 2 * right / (given + wanted) if given + wanted else 0.0


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of two lists of numbers; 0 where one of them does not vary."""
    first, second = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (x, y))
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of their ranks."""
    return pearson(ranks(x), ranks(y))  # type: ignore[arg-type]


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The rank of each from 1, equal numbers with the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: NDArray[np.float64] = ends - (counts - 1) / 2
    return mean[inverse]


def _of_numbers(score: Callable[[Sequence[float], Sequence[float]], float]) -> Metric:
    return lambda examples, answers: score([example.number for example in examples], answers)


def _micro_f1(examples: Sequence[Example], answers: Sequence[Any]) -> float:
    right = sum(len({*e.labels} & {*a}) for e, a in zip(examples, answers, strict=True))
    return f1(right, sum(map(len, answers)), sum(len(e.labels) for e in examples))


def _macro_f1_of_labels(examples: Sequence[Example], answers: Sequence[Any]) -> float:
    """The mean F1 of the labels that occur in the truths or the answers."""
    rows = list(zip(examples, answers, strict=True))
    right = Counter(label for e, a in rows for label in {*e.labels} & {*a})
    given, wanted = Counter(n for _, a in rows for n in a), Counter(n for e, _ in rows for n in e.labels)
    names = sorted({*given, *wanted})
    return sum(f1(right[n], given[n], wanted[n]) for n in names) / max(1, len(names))


def _gain(rank: float) -> float:
    """The discounted gain of the one right answer, 0 behind the tenth (Järvelin and Kekäläinen 2002)."""
    return float(1 / np.log2(1 + rank)) if rank <= 10 else 0.0


def _squared(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.mean((np.asarray(x) - np.asarray(y)) ** 2))


def _entity(score: Callable[[int, int, int], float]) -> Metric:
    return lambda examples, answers: score(*counted([example.labels for example in examples], answers))


def _word_accuracy(examples: Sequence[Example], answers: Sequence[Any]) -> float:
    pairs = zip(examples, answers, strict=True)
    return share(tag == own for e, a in pairs for tag, own in zip(e.labels, a, strict=True))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": lambda examples, answers: share(a == e.answer for e, a in zip(examples, answers, strict=True)),
        "macro_f1": lambda examples, answers: macro_f1([e.answer for e in examples], answers),
        "majority": lambda examples, answers: majority(examples),
        "micro_f1": _micro_f1,
        "macro_f1_of_labels": _macro_f1_of_labels,
        "exact_match_of_labels": lambda examples, answers: share(
            {*e.labels} == {*a} for e, a in zip(examples, answers, strict=True)
        ),
        "pearson": _of_numbers(pearson),
        "spearman": _of_numbers(spearman),
        "mse": _of_numbers(_squared),
        "entity_f1": _entity(lambda both, wanted, given: f1(both, given, wanted)),
        "entity_precision": _entity(lambda both, wanted, given: both / given if given else 0.0),
        "entity_recall": _entity(lambda both, wanted, given: both / wanted if wanted else 0.0),
        "word_accuracy": _word_accuracy,
        "ndcg_at_10": lambda examples, answers: float(np.mean([_gain(rank) for rank in answers])),
        "accuracy_at_1": lambda examples, answers: share(rank == 1 for rank in answers),
        "reward_accuracy": lambda examples, answers: share(margin > 0 for margin in answers),
        "reward_margin": lambda examples, answers: float(np.mean(answers)),
    }
)
