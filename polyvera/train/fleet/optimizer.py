"""SlotAdamW: AdamW and gradient clipping for all slots of a bank at once, each with its own step count and rate.

What a slot gets is what torch.optim.AdamW and clip_grad_norm_ would give to its numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby

import torch
from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.layout import Layout
from polyvera.adapter.lazy_zeros import zeros
from polyvera.train.fleet.adamw import ParamGroup, SlotStep, SlotTensors, adamw_step
from polyvera.train.recipe import Recipe

CLIP_EPS = 1e-6  # clip_grad_norm_'s
MOMENTS = ("exp_avg", "exp_avg_sq")


class SlotAdamW:
    """AdamW for the slots of a bank, from a recipe's learning rates, weight decay and clipping.

    grads: (num_slots, num_params), to which the backward pass adds from now on. steps: how many each slot has made.
    Raises LayoutError for a bank whose parameters were moved after inject().
    """

    def __init__(self, bank: Bank, recipe: Recipe) -> None:
        self.bank, self.recipe = bank, recipe
        self.groups = param_groups(bank.layout, recipe)
        self.grads, flat = bank.gradients(), bank.flat
        shape = (bank.num_slots, bank.layout.num_params)
        self.exp_avg, self.exp_avg_sq = (zeros(shape, device=flat.device, dtype=flat.dtype) for _ in MOMENTS)
        self.steps = [0] * bank.num_slots
        self._step = fastest_step(flat.device)

    def norms(self) -> Tensor:
        """The norm of each slot's gradient, (num_slots,) fp32 on the bank's device, once that fits a hash."""
        self.bank.tie_gradients()
        found: Tensor = torch.linalg.vector_norm(self.grads, dim=1, dtype=torch.float32)
        return found

    def step(
        self,
        indices: Sequence[int],
        factors: Sequence[float],
        norms: Sequence[float],
        scales: Sequence[float] | None = None,
    ) -> None:
        """A step for these slots, whose gradients are then zero; no other slot moves.

        indices: each once. factors: what each slot's schedule multiplies the learning rates by. norms: of the
        gradients, read back from norms(). scales: what multiplies each slot's rate of all but the head, 1 by default.
        """
        if not indices:
            return
        own = list(zip(indices, factors, norms, scales or [1.0] * len(indices), strict=True))
        for scale in dict.fromkeys(scale for *_, scale in own):
            alike = [(index, factor, norm) for index, factor, norm, other in own if other == scale]
            self._step_alike([group.scaled(scale) for group in self.groups], alike)
        self.bank.version += 1  # what was computed from these slots holds no longer

    def _step_alike(self, groups: Sequence[ParamGroup], slots: Sequence[tuple[int, float, float]]) -> None:
        """A step of slots that share their groups' rates, each an index, a factor and a norm."""
        for index, _, _ in slots:
            self.steps[index] += 1
        steps = [SlotStep(i, self.steps[i], f, min(1.0, self.recipe.clip / (norm + CLIP_EPS))) for i, f, norm in slots]
        tensors = SlotTensors(self.bank.flat, self.grads, self.exp_avg, self.exp_avg_sq)
        self._step(tensors, groups, steps, self.recipe.weight_decay)

    def reset(self, index: int) -> None:
        """Makes a slot ready for another tenant: no gradient, no moments, no steps."""
        for tensor in (self.grads, self.exp_avg, self.exp_avg_sq):
            tensor[index].zero_()
        self.steps[index] = 0

    def copy_first_step(self, source: int, target: int, scale: float) -> None:
        """Gives a slot that has made no step the first step of another, which began at the same numbers.

        AdamW's first step is linear in the learning rate: w - η (m̂ / (√v̂ + ε) + λ w). scale: what the target's rate of
        all but the head is, in the source's.
        """
        moved = self.bank.flat[source] - self.bank.flat[target]
        for group in self.groups:
            moved[group.columns] *= group.scaled(scale).lr / group.lr
        self.bank.flat[target] += moved
        self.exp_avg[target], self.exp_avg_sq[target] = self.exp_avg[source], self.exp_avg_sq[source]
        self.steps[target] = self.steps[source]
        self.bank.version += 1

    def state(self, index: int) -> dict[str, Tensor]:
        """A slot's numbers and moments by group, `0.weight` and `0.exp_avg`, as views; no moments before a step."""
        names = ("weight", *MOMENTS) if self.steps[index] else ("weight",)
        every = {"weight": self.bank.flat, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {f"{i}.{name}": every[name][index, g.columns] for i, g in enumerate(self.groups) for name in names}

    def restore(self, index: int, state: Mapping[str, Tensor], steps: int) -> None:
        """The inverse of `state`, for a slot that has made so many steps."""
        self.steps[index] = steps
        for name, own in self.state(index).items():
            own.copy_(state[name])
        self.bank.version += 1


def param_groups(layout: Layout, recipe: Recipe) -> tuple[ParamGroup, ...]:
    """The columns of the vectors or matrices, then those of the head, each with its learning rate."""
    rates = {False: recipe.learning_rate, True: recipe.head_learning_rate}
    found: dict[bool, list[ParamGroup]] = {False: [], True: []}
    for is_head, run in groupby(layout.stacks, key=lambda stack: not stack.entries[0].letter):
        stacks = list(run)
        begin, end = stacks[0].offset, stacks[-1].offset + stacks[-1].size
        found[is_head].append(ParamGroup(begin, end, rates[is_head], is_head))
    return (*found[False], *found[True])


def fastest_step(device: torch.device) -> Callable[..., None]:
    """adamw_step by Triton's kernel where there is one for the device, else by torch's."""
    if device.type != "cuda" or find_spec("triton") is None:
        return adamw_step
    from polyvera.train.fleet import adamw_kernel

    return adamw_kernel.adamw_step
