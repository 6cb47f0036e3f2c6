"""JOB_LOSSES: what the rows of a job ask of the trainer, for texts to learn and for answers to prefer.

DPO's gradient is that of a cross-entropy whose weights are known once both answers' likelihoods are: two passes without
a backward pass, of the adapter and of the base, and then one with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from polyvera.data.reward_margins import BETA
from polyvera.jobs.fine_tuning_job import DPO, SUPERVISED
from polyvera.model.task import LM, TASKS
from polyvera.train.live.datum import Datum
from polyvera.train.live.operation import Pass, PassResult
from polyvera.train.loss import num_items

EncodedRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class WeightedPass:
    """The pass that trains. loss: the mean over the rows, None where it is that pass's own."""

    asked: Pass
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class JobLoss:
    """A row of the table. before: passes whose results the loss needs. trained: (rows, those results, beta)."""

    before: Callable[[EncodedRows], tuple[Pass, ...]]
    trained: Callable[[EncodedRows, Sequence[PassResult], float], WeightedPass]


def _texts(rows: EncodedRows, results: Sequence[PassResult], beta: float) -> WeightedPass:
    """Rows with the weight that makes the sum of their losses the mean over their target tokens."""
    count = sum(num_items(row, TASKS[LM]) for row in rows)
    return WeightedPass(Pass(tuple(Datum.of_row(row, 1 / count) for row in rows)))


def _likelihoods(rows: EncodedRows) -> tuple[Pass, ...]:
    pairs = tuple(Datum.of_row(one, 1.0) for row in rows for one in _answers(row))
    return Pass(pairs, backward=False), Pass(pairs, backward=False, is_base=True)


def _preferences(rows: EncodedRows, results: Sequence[PassResult], beta: float) -> WeightedPass:
    """DPO, Rafailov 2023, equation 7: -log sigmoid of the margin, and its derivative as weights."""
    own, base = (np.array([one.sum(dtype=np.float64) for one in result.logprobs]) for result in results)
    margins = beta * ((own - base)[::2] - (own - base)[1::2])
    losses = np.logaddexp(0.0, -margins)
    weights = beta * np.exp(-margins - losses) / len(rows)  # sigmoid(-margin) = exp(-margin) / (1 + exp(-margin))
    signed = np.stack((weights, -weights), 1).ravel()
    answers = [one for row in rows for one in _answers(row)]
    pairs = tuple(Datum.of_row(one, weight) for one, weight in zip(answers, signed, strict=True))
    return WeightedPass(Pass(pairs), float(losses.mean()))


def _answers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chosen answer and the rejected one behind their prompt, of a row that has both end to end."""
    ends = np.cumsum([0, *row["parts"]]).tolist()
    return [{name: row[name][begin:end] for name in ("input_ids", "labels")} for begin, end in pairwise(ends)]


JOB_LOSSES: Mapping[str, JobLoss] = MappingProxyType(
    {SUPERVISED: JobLoss(lambda rows: (), _texts), DPO: JobLoss(_likelihoods, _preferences)}
)
DEFAULT_BETA = BETA
