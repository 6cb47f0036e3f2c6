"""AdaptedExperts: transformers' fused experts, and for each bank of the model their share of its slots.

An expert of a slot is to a token what a slot is to a row: the router says which expert a token goes to, the route which
slot, and the two together are one index into stacks of (slots x experts) short vectors. So mixed batches are equal to
each row alone, and A and B of a shared basis are shared by all experts, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.expert_stack import DOWN, form_of, stacks_of
from polyvera.adapter.grouped import grouped_linear, grouped_linear_naive
from polyvera.adapter.layer import AdaptedHead, AdaptedLinear, used_outside_graphs
from polyvera.adapter.route import current_route, tokens_of
from polyvera.adapter.slot_table import SlotTable

Products = Callable[[Tensor, Tensor, Tensor], Tensor]
Combine = Callable[[Tensor], Tensor]


class AdaptedExperts(nn.Module):
    """Frozen experts whose projections get the delta of the slot that each token's row is routed to.

    banks: a share for each adapted projection, whose site is the projection's parameter.
    """

    def __init__(self, base: nn.Module, table: SlotTable) -> None:
        super().__init__()
        form = form_of(base)
        assert form is not None
        self.base, self.form = base, form
        self.banks = nn.ModuleList()
        self.table = table
        self._used = used_outside_graphs()

    def forward(self, hidden_states: Tensor, *routing: Tensor) -> Tensor:
        """hidden_states (..., hidden) and what the base's own forward gets beside it -> (..., hidden)."""
        used = self._used(self.banks, self.table)
        if not used:
            return self.base(hidden_states, *routing)  # type: ignore[no-any-return]
        products = grouped_linear_naive if current_route(self.table).is_on_device else grouped_linear
        pairs = _of_all if self.form.sees_all else _of_chosen
        batch, tokens, experts, combine = pairs(self.base, hidden_states, *routing)
        slots = [(share, tokens_of(pick, batch).flatten()[tokens]) for share, pick in used]
        y = batch.flatten(0, -2)[tokens] if not self.form.sees_all else hidden_states
        y = self.form.activated(self.base, self._projected(self.form.up, y, experts, slots, products))
        y = self._projected(DOWN, y, experts, slots, products)
        return combine(self.base.post_expert_norm(y) if self.form.has_norm else y).view_as(hidden_states)  # type: ignore[operator]

    def _projected(
        self, key: str, x: Tensor, experts: Tensor, slots: list[tuple[Any, Tensor]], products: Products
    ) -> Tensor:
        """x (pairs, in) -> (pairs, out), each pair of a token and an expert by the token's slot."""
        y = products(x, dense_weight(stacks_of(self.base)[key]), experts)
        for share, slot in slots:
            if share.base.key == key:
                y = share.by_expert(x, y, slot, experts, products)
        return y + getattr(self.base, f"{key}_bias")[experts] if self.form.has_bias else y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def _of_chosen(
    base: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Combine]:
    """The batch, and of each token with an expert of its own: the token's number, the expert's, and how all are summed.

    top_k_index, top_k_weights: (tokens, k).
    """
    num_chosen = top_k_index.shape[-1]
    experts, order = top_k_index.reshape(-1).sort(stable=True)

    def combine(y: Tensor) -> Tensor:
        y = y * top_k_weights.reshape(-1)[order][:, None]
        summed = y[order.argsort()].view(len(top_k_index), num_chosen, y.shape[-1]).sum(1)
        return summed.to(hidden_states.dtype)

    return hidden_states, order // num_chosen, experts, combine


def _of_all(base: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Combine]:
    """The same where each expert gets every token."""
    num_experts = len(base.get_parameter(DOWN))
    batch = hidden_states.unflatten(0, (num_experts, -1))[0]  # type: ignore[no-untyped-call]
    numbers = torch.arange(num_experts, device=batch.device).repeat_interleave(len(batch))
    return batch, torch.arange(len(batch), device=batch.device).repeat(num_experts), numbers, lambda y: y


Adapted = AdaptedLinear | AdaptedHead | AdaptedExperts
