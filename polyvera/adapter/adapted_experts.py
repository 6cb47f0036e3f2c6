"""AdaptedExperts: transformers' fused experts, and for each bank of the model their share of its slots.

An expert of a slot is to a token what a slot is to a row: the router says which expert a token goes to, the route which
slot, and the two together are one index into stacks of (slots x experts) short vectors. So mixed batches are equal to
each row alone, and A and B of a shared basis are shared by all experts, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.expert_stack import projections, stacks_of
from polyvera.adapter.grouped import grouped_linear, grouped_linear_naive
from polyvera.adapter.layer import AdaptedHead, AdaptedLinear, used_outside_graphs
from polyvera.adapter.route import current_route, tokens_of
from polyvera.adapter.slot_table import SlotTable

Products = Callable[[Tensor, Tensor, Tensor], Tensor]


class AdaptedExperts(nn.Module):
    """Frozen experts whose projections get the delta of the slot that each token's row is routed to.

    banks: a share for each adapted projection, whose site is the projection's parameter.
    """

    def __init__(self, base: nn.Module, table: SlotTable) -> None:
        super().__init__()
        self.base = base
        self.banks = nn.ModuleList()
        self.table = table
        self._used = used_outside_graphs()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states (..., hidden), the experts of each token (tokens, k) and their weights -> (..., hidden)."""
        used = self._used(self.banks, self.table)
        if not used:
            return self.base(hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
        products = grouped_linear_naive if current_route(self.table).is_on_device else grouped_linear
        flat, num_chosen = hidden_states.flatten(0, -2), top_k_index.shape[-1]
        experts, order = top_k_index.reshape(-1).sort(stable=True)
        tokens = order // num_chosen
        slots = [(share, tokens_of(pick, hidden_states).flatten()[tokens]) for share, pick in used]
        y = flat[tokens]
        for key, after in zip(projections(self.base), (self._activated, self._normed), strict=True):
            y = after(self._projected(key, y, experts, slots, products))
        y = y * top_k_weights.reshape(-1)[order][:, None]
        summed = y[order.argsort()].view(len(flat), num_chosen, y.shape[-1]).sum(1)
        return summed.to(hidden_states.dtype).view_as(hidden_states)

    def _projected(
        self, key: str, x: Tensor, experts: Tensor, slots: list[tuple[Any, Tensor]], products: Products
    ) -> Tensor:
        """x (pairs, in) -> (pairs, out), each pair of a token and an expert by the token's slot."""
        y = products(x, dense_weight(stacks_of(self.base)[key]), experts)
        for share, slot in slots:
            if share.base.key == key:
                y = share.by_expert(x, y, slot, experts, products)
        return y + getattr(self.base, f"{key}_bias")[experts] if self.base.has_bias else y

    def _activated(self, y: Tensor) -> Tensor:
        base: Any = self.base
        return base._apply_gate(y) if base.has_gate else base.act_fn(y)  # type: ignore[no-any-return]

    def _normed(self, y: Tensor) -> Tensor:
        base: Any = self.base
        return base.post_expert_norm(y) if base.has_post_expert_norm else y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


Adapted = AdaptedLinear | AdaptedHead | AdaptedExperts
