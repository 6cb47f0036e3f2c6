"""Span: which two labels a loss takes for 0 and 1, where labels are numbers far from those.

A head then learns what has mean 0 and deviation 1, whatever the unit; its last layer is put into the unit afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import hypot
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

Span = tuple[float, float]
ITSELF: Span = (0.0, 1.0)


def scaled(number: float, span: Span) -> float:
    """The label as the loss takes it."""
    return (number - span[0]) / (span[1] - span[0])


def inverse(span: Span) -> Span:
    """The span that undoes it."""
    return scaled(0.0, span), scaled(1.0, span)


def _range(numbers: Sequence[float]) -> Span:
    low, high = min(numbers), max(numbers)
    return (low, high) if low < high else ITSELF


def _deviation(numbers: Sequence[float]) -> Span:
    """The mean, and the mean and one deviation (of the population)."""
    largest = max(map(abs, numbers)) or 1.0  # so that no square overflows
    parts = np.array(numbers) / largest
    mean, deviation = largest * float(parts.mean()), largest * float(parts.std())
    return mean, mean + (deviation if mean < mean + deviation else max(1.0, abs(mean)))


SPANS: Mapping[str, Callable[[Sequence[float]], Span]] = MappingProxyType({"range": _range, "deviation": _deviation})


def learned_span(span: Span, head: Mapping[str, Tensor]) -> Span:
    """The span of a table that a head of these tensors can learn in: without a bias 0 stays 0, and without one layer of
    one output at its end all stays as it is.
    """
    last = _last_layer(head)
    if not last:
        return ITSELF
    return span if len(last) > 1 else (0.0, hypot(span[0], span[1] - span[0]))


def put_into_unit(head: Mapping[str, Tensor], span: Span) -> None:
    """Changes a head that answers as the loss takes labels to one that answers in their own unit, in place."""
    if span == ITSELF:
        return
    with torch.no_grad():
        for tensor in _last_layer(head):
            tensor.mul_(span[1] - span[0])
            if tensor.dim() == 1:
                tensor.add_(span[0])


def _last_layer(head: Mapping[str, Tensor]) -> list[Tensor]:
    """The weight and, where there is one, the bias of the layer that has one output; [] where none or several do."""
    ones = sorted((tensor for tensor in head.values() if tensor.dim() and len(tensor) == 1), key=lambda t: -t.dim())
    return ones if [tensor.dim() for tensor in ones] in ([2], [2, 1]) else []
