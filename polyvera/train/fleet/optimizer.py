"""SlotAdamW: AdamW and gradient clipping for all slots of a bank at once, each with its own step count and rate.

What a slot gets is what torch.optim.AdamW and clip_grad_norm_ would give to its numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.layout import Layout
from polyvera.train.fleet.adamw import AdamSettings, ParamGroup
from polyvera.train.fleet.moments import MOMENTS, SlotMoments, clip_factor
from polyvera.train.recipe import Recipe


class SlotAdamW:
    """AdamW for the slots of a bank, from a recipe's learning rates, weight decay and clipping.

    grads, exp_avg, exp_avg_sq, steps: those of `moments`. Raises LayoutError for a bank whose parameters were moved
    after inject().
    """

    def __init__(self, bank: Bank, recipe: Recipe) -> None:
        self.bank, self.recipe, self.moments = bank, recipe, SlotMoments(bank)
        self.groups, self.settings = param_groups(bank.layout, recipe), AdamSettings(weight_decay=recipe.weight_decay)
        self.grads, self.steps = self.moments.grads, self.moments.steps
        self.exp_avg, self.exp_avg_sq = self.moments.exp_avg, self.moments.exp_avg_sq
        self.norms, self.reset = self.moments.norms, self.moments.reset

    def step(self, indices: Sequence[int], factors: Sequence[float], norms: Sequence[float]) -> None:
        """A step for these slots, whose gradients are then zero; no other slot moves.

        indices: each once. factors: what each slot's schedule multiplies the learning rates by. norms: of the
        gradients, read back from norms().
        """
        clips = [clip_factor(norm, self.recipe.clip) for norm in norms]
        self.moments.step(self.groups, self.settings, indices, factors, clips)

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
        found[is_head].append(ParamGroup(stacks[0].offset, stacks[-1].offset + stacks[-1].size, rates[is_head]))
    return (*found[False], *found[True])
