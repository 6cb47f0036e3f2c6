"""SlotMoments: the gradient, the two moments and the step count of every slot of a bank, and AdamW's step for some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.lazy_zeros import zeros
from polyvera.train.fleet.adamw import AdamSettings, ParamGroup, SlotStep, SlotTensors, adamw_step

CLIP_EPS = 1e-6  # clip_grad_norm_'s
MOMENTS = ("exp_avg", "exp_avg_sq")


class SlotMoments:
    """What AdamW needs of the slots of a bank.

    grads: (num_slots, num_params), to which the backward pass adds from now on. exp_avg, exp_avg_sq: alike. steps: how
    many each slot has made. masks: which numbers of a slot move, (num_params,) of 0 and 1 by its index; all of others.
    Raises LayoutError for a bank whose parameters were moved after inject().
    """

    def __init__(self, bank: Bank) -> None:
        self.bank, self.grads, flat = bank, bank.gradients(), bank.flat
        shape = (bank.num_slots, bank.layout.num_params)
        self.exp_avg, self.exp_avg_sq = (zeros(shape, device=flat.device, dtype=flat.dtype) for _ in MOMENTS)
        self.steps = [0] * bank.num_slots
        self.masks: dict[int, Tensor] = {}
        self.kernel = fastest_step(flat.device)

    def norms(self) -> Tensor:
        """The norm of each slot's gradient, (num_slots,) fp32 on the bank's device, once that fits hash and masks."""
        self.bank.tie_gradients()
        for index, mask in self.masks.items():
            self.grads[index] *= mask
        found: Tensor = torch.linalg.vector_norm(self.grads, dim=1, dtype=torch.float32)
        return found

    def step(
        self,
        groups: Sequence[ParamGroup],
        settings: AdamSettings,
        indices: Sequence[int],
        factors: Sequence[float],
        clips: Sequence[float],
    ) -> None:
        """A step for these slots, whose gradients are then zero; no other slot moves.

        indices: each once. factors: what multiplies each slot's learning rates. clips: what multiplies its gradient.
        """
        if not indices:
            return
        for index in indices:
            self.steps[index] += 1
        steps = [SlotStep(i, self.steps[i], f, c) for i, f, c in zip(indices, factors, clips, strict=True)]
        tensors = SlotTensors(self.bank.flat, self.grads, self.exp_avg, self.exp_avg_sq)
        self.kernel(tensors, groups, steps, settings)
        self.bank.version += 1  # what was computed from these slots holds no longer

    def reset(self, index: int) -> None:
        """Makes a slot ready for another run: no gradient, no moments, no steps."""
        for tensor in (self.grads, self.exp_avg, self.exp_avg_sq):
            tensor[index].zero_()
        self.steps[index] = 0
        self.masks.pop(index, None)


def clip_factor(norm: float, most: float) -> float:
    """What a gradient of that norm is multiplied by, so that its norm is at most `most`, as clip_grad_norm_ does it."""
    return min(1.0, most / (norm + CLIP_EPS))


def fastest_step(device: torch.device) -> Callable[..., None]:
    """adamw_step by Triton's kernel where there is one for the device, else by torch's."""
    if device.type != "cuda" or find_spec("triton") is None:
        return adamw_step
    from polyvera.train.fleet import adamw_kernel

    return adamw_kernel.adamw_step
