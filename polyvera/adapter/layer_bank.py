"""LayerBank: one layer's share of a bank, and its forward, whichever way the batch names its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvera.adapter.bank_state import BankState
from polyvera.adapter.base_layer import BaseLayer, bias_of, dense_weight
from polyvera.adapter.batched import adapt_rows, adapt_rows_by_factors, is_own, picked
from polyvera.adapter.equation import (
    FUSED_ON,
    NormParts,
    Vectors,
    adapt,
    add_delta,
    exact,
    factored_row_norm,
    without_autocast,
)
from polyvera.adapter.layer_use import gets_chosen_tokens
from polyvera.adapter.layout import Site
from polyvera.adapter.route import Pick
from polyvera.adapter.shared_input import SharedInput, project_input

Products = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # of rows with the matrices of a stack, as grouped_linear has them


def _as_wide(mask: Tensor, value: Tensor) -> Tensor:
    """The mask with as many axes as the value, which may be a matrix a row."""
    return mask.view(*mask.shape, *(1,) * (value.dim() - mask.dim()))


class LayerBank(nn.Module):
    """One layer's share of a bank: each trained factor with a leading slot axis, and the frozen ones it needs.

    A, B, C, d, b, m: Parameter (slots, *shape) where trained; A (rank, in), B (out, rank) of a row that has one for
    each layer.
    """

    def __init__(
        self,
        bank: BankState,
        site: Site,
        base: BaseLayer,
        shared: SharedInput,
        frozen: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self._trained = bank.layout.method.trained
        self._owns_factors = bool({"A", "B"} & set(self._trained))
        self._norm_rows: Tensor | None = None
        self.bank, self.site, self.shared = bank, site, shared
        self._is_ordered = not gets_chosen_tokens(site.name)
        self._base = [base]  # in a list, so that the base is not registered a second time
        self._parts: NormParts | None = None
        self._norms: dict[int, tuple[object, Tensor]] = {}
        for letter, value in frozen.items():
            self.register_buffer(letter, value, persistent=False)
        weight = next(base.parameters())
        if bank.basis is not None and weight.is_floating_point():  # copied now: a compiler would guard on its absence
            self._pair(weight.device, self._product_dtype(weight))

    @property
    def base(self) -> BaseLayer:
        """The frozen base layer."""
        return self._base[0]

    def extra_repr(self) -> str:
        """Method, rank, slots and bytes."""
        num_bytes = sum(p.numel() * p.element_size() for p in self.parameters())
        return (
            f"{self.bank.layout.method.name}, rank {self.site.rank}, {self.bank.num_slots} slots, {num_bytes:,} bytes"
        )

    def forward(self, x: Tensor, y: Tensor, pick: Pick) -> Tensor:
        """The base's output y (..., out) with this bank's delta added to the rows that are its own."""
        pick = pick.over(x, self._is_ordered)
        if pick.index is not None:
            return self.by_index(x, y, pick.index)
        if pick.slot is None and self._owns_factors:
            return self._by_groups(x, y, pick)
        if pick.slot is None and self._is_indexed(x, y):
            return self.by_index(x, y, pick.local(x.device))
        A, vectors = self._ready(x, pick)
        return adapt(y, self._input(x, A), vectors, self._bias(), self._is_fresh(y, A))

    def by_index(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """forward with the index of each row in a tensor that the host never reads: the form that graphs hold."""
        own = {letter: getattr(self, letter) for letter in self._trained}
        norm = self._norms_by_index(own) if "m" in own else None
        if not self._owns_factors or self.bank.num_slots == 1:
            one = {k: v[0] for k, v in own.items()} if self._owns_factors else {}
            A, B = self._pair(x.device, self._product_dtype(x), one)
            d = own.get("d")
            if "A" in own and d is not None:
                A, d = (A * d[0][:, None]).to(A.dtype), None
            v = self._vectors(B, d, own, norm)
            return adapt_rows(y, self._input(x, A), v, index, self._bias())
        dtype = self._product_dtype(x)
        A = own["A"].to(dtype) if "A" in own else self.get_buffer("A").to(dtype)
        A = (A * own["d"][:, :, None]).to(dtype) if "d" in own else A  # PEFT's AdaLoRA scales A itself
        B = (own["B"] if "B" in own else self.get_buffer("B")).to(dtype)
        v = Vectors(B, None, None, self.site.scale, own.get("m"), norm)
        return adapt_rows_by_factors(self._dropped(x), y, A, v, index, self._bias())

    def by_expert(self, x: Tensor, y: Tensor, slots: Tensor, experts: Tensor, products: Products) -> Tensor:
        """by_index of a stack: x (pairs, in), y (pairs, out), the index in the bank and the expert of each pair."""
        index = torch.where(slots < 0, -1, slots * self.site.num_experts + experts)
        own = {letter: getattr(self, letter).flatten(0, 1) for letter in self._trained}
        norm = self.norm_rows().flatten(0, 1) if "m" in own else None
        if self.bank.basis is not None and "C" not in own:
            A, B = self._pair(x.device, self._product_dtype(x))
            return adapt_rows(y, self._input(x, A), self._vectors(B, own.get("d"), own, norm), index)
        with without_autocast(x):
            w = self._expanded(self._dropped(x).to(self._product_dtype(x)), own, index, products)
        b, m, norm = (None if t is None else picked(t, index, y) for t in (own.get("b"), own.get("m"), norm))
        out = add_delta(y, w if b is None else w * b, Vectors(w, None, None, self.site.scale, m, norm))
        return torch.where(is_own(index, y), out, y)

    def _expanded(self, x: Tensor, own: Mapping[str, Tensor], index: Tensor, products: Products) -> Tensor:
        """B C (d ⊙ A x) with matrices of each slot's experts, of the experts alone, or of all of them."""
        u = self._times("A", x, own, index, products)
        u = u if "d" not in own else u * picked(own["d"], index, u)
        u = u if "C" not in own else self._times("C", u, own, index, products)
        return self._times("B", u, own, index, products)

    def _times(self, letter: str, x: Tensor, own: Mapping[str, Tensor], index: Tensor, products: Products) -> Tensor:
        if letter in own:
            return products(x, own[letter].to(x.dtype), index)
        frozen = dict(zip("AB", self._pair(x.device, x.dtype, own), strict=True))[letter]
        if frozen.dim() == 2:
            return F.linear(x, frozen)
        return products(x, frozen, torch.where(index < 0, -1, index % self.site.num_experts))

    def _is_indexed(self, x: Tensor, y: Tensor) -> bool:
        """Whether rows of several slots go through the kernels: there the stacks are read where they lie."""
        return "m" not in self._trained and x.dtype == y.dtype == self._product_dtype(x) and y.device.type in FUSED_ON

    def _is_fresh(self, y: Tensor, A: Tensor) -> bool:
        """Whether the base's output is a tensor of its own, which nobody else reads."""
        base = self.base
        return type(base) is nn.Linear and not base._forward_hooks and y.dtype == A.dtype and y.is_contiguous()

    def _norms_by_index(self, own: Mapping[str, Tensor]) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.norm_rows()
        table, bank = self.bank.table_number, self.bank.position
        trained = [value.detach() for value in own.values()]
        found: Tensor = torch.ops.polyvera.norm_rows(
            trained, own["m"].detach(), table, bank, self.site.name, torch.is_grad_enabled()
        )
        return found

    def _ready(self, x: Tensor, pick: Pick) -> tuple[Tensor, Vectors]:
        """A, and what stands behind A x for each row; kept for the life of the route where nothing trains."""
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(x.device.type)
        key = (id(self), x.dim(), x.device, x.dtype, *modes)
        if key in pick.cache:
            return pick.cache[key]  # type: ignore[no-any-return]
        found = self._gather(x, pick) if pick.slot is None else self._of_one(x, pick.slot, self._own(pick.slot, x))
        if not (pick.is_once or self.bank.trainable):
            pick.cache[key] = found
        return found

    def _own(self, slot: int, x: Tensor) -> Mapping[str, Tensor]:
        """of_slot, or the whole stack of a single slot where the kernels take it as it is."""
        if self.bank.num_slots > 1 or self._owns_factors or "m" in self._trained or x.device.type not in FUSED_ON:
            return self.of_slot(slot)
        return {letter: self.get_parameter(letter) for letter in self._trained}

    def _of_one(self, x: Tensor, slot: int, own: Mapping[str, Tensor]) -> tuple[Tensor, Vectors]:
        A, B = self._pair(x.device, self._product_dtype(x), own)
        d = own.get("d")
        if d is not None and "A" in own:  # PEFT's AdaLoRA scales A itself
            A, d = (A * d[:, None]).to(A.dtype), None
        norm = None if "m" not in own else self._norm_to_use(slot, own)
        return A, self._vectors(B, d, own, norm)

    def _by_groups(self, x: Tensor, y: Tensor, pick: Pick) -> Tensor:
        axis = pick.rows.dim()
        flat_x, flat_y = x.flatten(0, axis - 1), y.flatten(0, axis - 1)
        slots = self._slots() if self.bank.trainable else None
        parts, order = [], []
        groups, others = pick.groups_on(x.device)
        for slot, mine in groups:
            own = self.of_slot(slot) if slots is None else {letter: views[slot] for letter, views in slots.items()}
            A, vectors = self._of_one(flat_x, slot, own)
            parts.append(adapt(flat_y[mine], self._input(flat_x[mine], A), vectors, self._bias()))
            order.append(mine)
        places = torch.cat([*order, others]).argsort()
        return torch.cat([*parts, flat_y[others]])[places].view_as(y)

    def _slots(self) -> dict[str, tuple[Tensor, ...]]:
        """Every slot's factors, taken apart once, so that the backward pass puts their gradients together once."""
        return {letter: getattr(self, letter).unbind(0) for letter in self.bank.layout.method.trained}

    def _vectors(self, B: Tensor, d: Tensor | None, own: Mapping[str, Tensor], norm: Tensor | None) -> Vectors:
        return Vectors(B, d, own.get("b"), self.site.scale, own.get("m"), norm, own.get("C"))

    def _gather(self, x: Tensor, pick: Pick) -> tuple[Tensor, Vectors]:
        """Each row's own d, C, b and m over the norm."""
        A, B = self._pair(x.device, self._product_dtype(x))
        own = {k: pick.gather(getattr(self, k), x) for k in self.bank.layout.method.trained}
        mask = None if pick.mask is None else pick.gather_mask(x)
        if mask is not None:  # nothing of a slot reaches the rows of others, not even 0 times its infinity
            own = {k: torch.where(_as_wide(mask, v) > 0, v, 0.0) for k, v in own.items()}
        norm = None
        if "m" in own:
            every = torch.stack([self._norm_to_use(i, self.of_slot(i)) for i in pick.used])
            norm = pick.gather(every, x, pick.positions(every.device))
            if mask is not None:  # g = 1 on the rows of others
                own["m"], norm = torch.where(mask > 0, own["m"], 1.0), torch.where(mask > 0, norm, 1.0)
        return A, self._vectors(B, own.get("d"), own, norm)

    def of_slot(self, slot: int) -> dict[str, Tensor]:
        """The trained factors of one slot, as views."""
        stacks = {letter: getattr(self, letter) for letter in self._trained}
        if self.bank.num_slots == 1 and slot == 0:  # a view whose gradient is one too
            return {letter: stack.squeeze(0) for letter, stack in stacks.items()}
        return {letter: stack[slot] for letter, stack in stacks.items()}

    def matrices(self, slot: int) -> dict[str, Tensor]:
        """Every factor of one slot in fp32, frozen ones sliced to this layer, as delta_weight takes them."""
        own = {k: v.detach().float() for k, v in self.of_slot(slot).items()}
        A, B = self._pair(next(iter(own.values())).device, self.bank.dtype, own)
        return {**own, "A": A, "B": B}

    def row_norm(self, slot: int) -> Tensor:
        """‖W + ΔW‖ of each row in fp32; a constant until the slot changes."""
        known = self._norms.get(slot)
        if known is None or known[0] != self._state(slot):
            known = self._norms[slot] = (self._state(slot), self.norm_of(self.of_slot(slot)))
        return known[1]

    def keep_norm(self, slot: int, norm: Tensor) -> None:
        """Says what row_norm of the slot is, as it stands."""
        self._norms[slot] = (self._state(slot), norm)

    def norm_rows(self) -> Tensor:
        """row_norm of every slot, (slots, out) fp32, 1 for an empty one.

        Where nothing trains it is one tensor that the bank keeps up to date: a captured graph reads it where it lies.
        """
        m = self.get_parameter("m")
        if self.bank.trainable:
            return torch.stack([self._norm_to_use(i, self.of_slot(i)) for i in range(len(m))]).detach()
        if self._norm_rows is None or (self._norm_rows.shape, self._norm_rows.device) != (m.shape, m.device):
            with torch.inference_mode(False):
                self._norm_rows = torch.ones_like(m, dtype=torch.promote_types(m.dtype, torch.float32))
            for index in self.bank.occupied:
                self.refresh(index)
        return self._norm_rows

    def refresh(self, index: int) -> None:
        """Says that a slot was written or emptied."""
        if self._norm_rows is not None and index < len(self._norm_rows):
            self._norm_rows[index] = self.row_norm(index) if index in self.bank.occupied else 1.0

    def norm_of(self, own: Mapping[str, Tensor]) -> Tensor:
        """row_norm with the trained factors that are given."""
        with torch.no_grad(), without_autocast(own["m"]):
            return self._exact_norm(own)

    def _state(self, slot: int) -> object:
        return self.bank.written(slot), *(getattr(self, k)._version for k in self.bank.layout.method.trained)

    def _norm_to_use(self, slot: int, own: Mapping[str, Tensor]) -> Tensor:
        if not (torch.is_grad_enabled() and self.bank.trainable):
            return self.row_norm(slot)
        with torch.no_grad(), without_autocast(own["m"]):
            return self._factored_norm(own)

    def _exact_norm(self, own: Mapping[str, Tensor]) -> Tensor:
        """Dense where A is the adapter's own, in PEFT's order of rounding; factored where A is frozen."""
        if "A" not in own:
            return self._factored_norm(own)
        A, B = (exact(t) for t in self._pair(own["m"].device, self.bank.dtype, own))
        A = A if "d" not in own else A * own["d"][..., None]
        dW = (A.mT @ B.mT).mT
        factor, divisor = self.site.scale
        norm = torch.linalg.norm(self._weight() + factor * (dW if divisor == 1.0 else dW / divisor), dim=-1)
        return torch.where(norm > 0, norm, 1.0)

    def _factored_norm(self, own: Mapping[str, Tensor]) -> Tensor:
        A, B = (exact(t) for t in self._pair(own["m"].device, self.bank.dtype, own))
        parts = self._parts
        if "A" in own or parts is None or (parts.AA.device, parts.AA.dtype) != (A.device, A.dtype):
            parts = NormParts.of(self._weight(), A)
            self._parts = None if "A" in own else parts
        return factored_row_norm(parts, self._vectors(B, own.get("d"), own, None))

    def _weight(self) -> Tensor:
        return dense_weight(self.base).to(torch.promote_types(self.bank.dtype, torch.float32))

    def _bias(self) -> Tensor | None:
        return bias_of(self.base) if "m" in self.bank.layout.method.factors else None

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.bank.dropout) if self.training and self.bank.dropout else x

    def prepare(self, x: Tensor) -> None:
        """Computes A x, where all rows have one A, before the base layer's output is there."""
        if self.bank.basis is not None:
            A, _ = self._pair(x.device, self._product_dtype(x))
            self.shared.prepare(x, A, self.bank.dropout if self.training else 0.0)

    def _input(self, x: Tensor, A: Tensor) -> Tensor:
        dropout = self.bank.dropout if self.training else 0.0
        if self.bank.basis is None:
            return project_input(x, A, dropout)
        return self.shared.project(x, A, dropout, self.site.name)

    def _product_dtype(self, x: Tensor) -> torch.dtype:
        """Of A, B and their products: autocast's, else the bank's choice, else a low input's, save on a CPU."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        is_low = device != "cpu" and x.dtype in (torch.bfloat16, torch.float16)
        return self.bank.product_dtype or (x.dtype if is_low else self.bank.dtype)

    def _pair(
        self, device: torch.device, dtype: torch.dtype, own: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank), there and so."""
        own = own or {}
        if self.bank.basis is not None:
            return self.bank.basis.part(device, dtype, self.site.in_features, self.site.out_features)
        A, B = (own[letter] if letter in own else self.get_buffer(letter) for letter in ("A", "B"))
        return A.to(dtype), B.to(dtype)
