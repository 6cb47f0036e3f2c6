"""adamw_step: clipping and AdamW (Loshchilov 2019, algorithm 2) for slots that each have their own count and rate.

This is the step by torch's own fused kernel, on any device. adamw_kernel.py makes the same step by one of Triton's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """What AdamW takes beside the learning rate; by default torch.optim.AdamW's own, without weight decay."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """A run of columns of every slot, from begin to end, that share a learning rate. is_head: whether of the head."""

    begin: int
    end: int
    lr: float
    is_head: bool = False

    @property
    def columns(self) -> slice:
        """Where in a slot's row they are."""
        return slice(self.begin, self.end)

    def scaled(self, scale: float) -> ParamGroup:
        """The same with another learning rate, which a head never takes."""
        return self if self.is_head else replace(self, lr=scale * self.lr)


@dataclass(frozen=True, slots=True)
class SlotTensors:
    """What AdamW reads and writes of all slots: (num_slots, num_params) each, alike in device and dtype."""

    flat: Tensor
    grads: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True, slots=True)
class SlotStep:
    """One slot that takes a step.

    index: its row. step: how many it has made with this one. factor: what its schedule multiplies every group's rate
    by. clip: what its gradient is multiplied by, at most 1.
    """

    index: int
    step: int
    factor: float
    clip: float


def adamw_step(
    tensors: SlotTensors, groups: Sequence[ParamGroup], steps: Sequence[SlotStep], settings: AdamSettings
) -> None:
    """A step for those slots, whose gradients are then zero; no other slot's numbers change."""
    _clip(tensors.grads, steps)
    for group in groups:
        for factor, alike in _by_factor(steps):
            _library_step(tensors, group, alike, group.lr * factor, settings)
    for step in steps:
        tensors.grads[step.index].zero_()


def _clip(grads: Tensor, steps: Sequence[SlotStep]) -> None:
    if all(step.clip == 1.0 for step in steps):
        return
    clips = torch.ones(len(grads), 1, dtype=grads.dtype)
    for step in steps:
        clips[step.index] = step.clip
    grads.mul_(clips.to(grads.device))


def _by_factor(steps: Sequence[SlotStep]) -> Iterator[tuple[float, list[SlotStep]]]:
    """The slots that share a rate: all, where tenants have as many rows as each other."""
    for factor in dict.fromkeys(step.factor for step in steps):
        yield factor, [step for step in steps if step.factor == factor]


def _library_step(
    tensors: SlotTensors, group: ParamGroup, steps: Sequence[SlotStep], lr: float, settings: AdamSettings
) -> None:
    every = (tensors.flat, tensors.grads, tensors.exp_avg, tensors.exp_avg_sq)
    params, grads, exp_avgs, exp_avg_sqs = ([t[step.index, group.columns] for step in steps] for t in every)
    made = torch.tensor([step.step - 1.0 for step in steps], device=tensors.flat.device)
    adamw(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        list(made.unbind()),
        fused=True,
        amsgrad=False,
        beta1=settings.beta1,
        beta2=settings.beta2,
        lr=lr,
        weight_decay=settings.weight_decay,
        eps=settings.eps,
        maximize=False,
    )
