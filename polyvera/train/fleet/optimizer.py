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
        own = list(zip(indices, factors, norms, scales or [1.0] * len(indices), strict=True))
        for scale in dict.fromkeys(scale for *_, scale in own):
            alike = [(index, factor, norm) for index, factor, norm, other in own if other == scale]
            self._step_alike([group.scaled(scale) for group in self.groups], alike)

    def _step_alike(self, groups: Sequence[ParamGroup], slots: Sequence[tuple[int, float, float]]) -> None:
        """A step of slots that share their groups' rates, each an index, a factor and a norm."""
        clips = [clip_factor(norm, self.recipe.clip) for *_, norm in slots]
        indices, factors = [index for index, *_ in slots], [factor for _, factor, _ in slots]
        self.moments.step(groups, self.settings, indices, factors, clips)

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
