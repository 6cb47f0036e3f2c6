"""AdaptedLinear: a frozen base layer and, for each bank of the model, that layer's share of the bank's slots.

One class and one forward serve solo training (a bank of one slot), fleets and serving alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvera.adapter.bank_state import BankState
from polyvera.adapter.base_layer import bias_of, dense_weight
from polyvera.adapter.equation import NormParts, Vectors, adapt, exact, factored_row_norm, without_autocast
from polyvera.adapter.layout import Site
from polyvera.adapter.packed_linear import linear
from polyvera.adapter.route import Pick, current_route
from polyvera.adapter.slot_table import SlotTable, distinct


class SharedInput:
    """u = A x, computed once for the sibling layers that read the same x (q, k, v; gate, up)."""

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Tensor], object, Tensor] | None = None

    def project(self, x: Tensor, A: Tensor, dropout: float) -> Tensor:
        """x (..., in), A (rank, in) -> (..., rank), in A's dtype."""
        if torch.compiler.is_compiling():  # the compiler removes the repeated product itself
            return _project(x, A, dropout)
        version = 0 if x.is_inference() else x._version
        # A checkpoint's recomputation must save what its forward saved, so it never takes the forward's u.
        task = torch._C._current_graph_task_id()
        state = (A.data_ptr(), A.dtype, torch.is_grad_enabled(), dropout, version, task)
        kept = self._kept
        if kept is not None and kept[0]() is x and kept[1] == state:
            return kept[2]
        u = _project(x, A, dropout)
        self._kept = (weakref.ref(x, self._forget), state, u)
        return u

    def _forget(self, ref: weakref.ref[Tensor]) -> None:
        if self._kept is not None and self._kept[0] is ref:
            self._kept = None

    def __deepcopy__(self, memo: object) -> SharedInput:
        return SharedInput()


def _project(x: Tensor, A: Tensor, dropout: float) -> Tensor:
    x = x.to(A.dtype)
    with without_autocast(x):
        return linear(F.dropout(x, dropout) if dropout else x, A)


class LayerBank(nn.Module):
    """One layer's share of a bank: each trained factor with a leading slot axis, and the frozen ones it needs.

    A, B, d, b, m: Parameter (slots, *shape) where trained; A (rank, in) of a row that draws it for each layer.
    """

    def __init__(
        self, bank: BankState, site: Site, base: nn.Module, shared: SharedInput, frozen: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.bank, self.site, self.shared = bank, site, shared
        self._base = [base]  # in a list, so that the base is not registered a second time
        self._parts: NormParts | None = None
        self._norms: dict[int, tuple[object, Tensor]] = {}
        for letter, value in frozen.items():
            self.register_buffer(letter, value, persistent=False)

    @property
    def base(self) -> nn.Module:
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
        pick.check(x)
        if pick.slot is None and {"A", "B"} & set(self.bank.layout.method.trained):
            return self._by_groups(x, y, pick)
        A, vectors = self._ready(x, pick)
        return adapt(y, self._input(x, A), vectors, self._bias())

    def _ready(self, x: Tensor, pick: Pick) -> tuple[Tensor, Vectors]:
        """A, and what stands behind A x for each row; kept for the life of the route where nothing trains."""
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(x.device.type)
        key = (id(self), x.dim(), x.device, x.dtype, *modes)
        if key in pick.cache:
            return pick.cache[key]  # type: ignore[no-any-return]
        found = self._gather(x, pick) if pick.slot is None else self._of_one(x, pick.slot, self.of_slot(pick.slot))
        if not (pick.is_once or self.bank.trainable):
            pick.cache[key] = found
        return found

    def _of_one(self, x: Tensor, slot: int, own: Mapping[str, Tensor]) -> tuple[Tensor, Vectors]:
        A, B = self._pair(x, own)
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
        for slot, mine in pick.groups:
            mine = mine.to(x.device)
            own = self.of_slot(slot) if slots is None else {letter: views[slot] for letter, views in slots.items()}
            A, vectors = self._of_one(flat_x, slot, own)
            parts.append(adapt(flat_y[mine], self._input(flat_x[mine], A), vectors, self._bias()))
            order.append(mine)
        others = pick.others.to(x.device)
        places = torch.cat([*order, others]).argsort()
        return torch.cat([*parts, flat_y[others]])[places].view_as(y)

    def _slots(self) -> dict[str, tuple[Tensor, ...]]:
        """Every slot's factors, taken apart once, so that the backward pass puts their gradients together once."""
        return {letter: getattr(self, letter).unbind(0) for letter in self.bank.layout.method.trained}

    def _vectors(self, B: Tensor, d: Tensor | None, own: Mapping[str, Tensor], norm: Tensor | None) -> Vectors:
        return Vectors(B, d, own.get("b"), self.site.scale, own.get("m"), norm)

    def _gather(self, x: Tensor, pick: Pick) -> tuple[Tensor, Vectors]:
        """Each row's own d, b and m over the norm."""
        A, B = self._pair(x)
        own = {k: pick.gather(getattr(self, k), x) for k in self.bank.layout.method.trained}
        mask = None if pick.mask is None else pick.gather_mask(x)
        if mask is not None:  # nothing of a slot reaches the rows of others, not even 0 times its infinity
            own = {k: torch.where(mask > 0, v, 0.0) for k, v in own.items()}
        norm = None
        if "m" in own:
            every = torch.stack([self._norm_to_use(i, self.of_slot(i)) for i in self._used(pick)])
            norm = pick.gather(every[self._positions(pick)], x)
            if mask is not None:  # g = 1 on the rows of others
                own["m"], norm = torch.where(mask > 0, own["m"], 1.0), torch.where(mask > 0, norm, 1.0)
        return A, self._vectors(B, own.get("d"), own, norm)

    def _used(self, pick: Pick) -> list[int]:
        return distinct(pick.rows)

    def _positions(self, pick: Pick) -> Tensor:
        """For each slot of the bank, where `_used` lists it."""
        places = torch.zeros(self.bank.num_slots, dtype=torch.long)
        places[self._used(pick)] = torch.arange(len(self._used(pick)))
        return places

    def of_slot(self, slot: int) -> dict[str, Tensor]:
        """The trained factors of one slot, as views."""
        return {letter: getattr(self, letter)[slot] for letter in self.bank.layout.method.trained}

    def matrices(self, slot: int) -> dict[str, Tensor]:
        """Every factor of one slot in fp32, frozen ones sliced to this layer, as delta_weight takes them."""
        own = {k: v.detach().float() for k, v in self.of_slot(slot).items()}
        A, B = self._pair(next(iter(own.values())), own)
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
        A, B = (exact(t) for t in self._pair(own["m"], own))
        A = A if "d" not in own else A * own["d"][:, None]
        dW = F.linear(A.T, B).T
        factor, divisor = self.site.scale
        norm = torch.linalg.norm(self._weight() + factor * (dW if divisor == 1.0 else dW / divisor), dim=1)
        return torch.where(norm > 0, norm, 1.0)

    def _factored_norm(self, own: Mapping[str, Tensor]) -> Tensor:
        A, B = (exact(t) for t in self._pair(own["m"], own))
        parts = self._parts
        if "A" in own or parts is None or (parts.AA.device, parts.AA.dtype) != (A.device, A.dtype):
            parts = NormParts.of(self._weight(), A)
            self._parts = None if "A" in own else parts
        return factored_row_norm(parts, self._vectors(B, own.get("d"), own, None))

    def _weight(self) -> Tensor:
        return dense_weight(self.base).to(torch.promote_types(self.bank.dtype, torch.float32))

    def _bias(self) -> Tensor | None:
        return bias_of(self.base) if "m" in self.bank.layout.method.factors else None

    def _input(self, x: Tensor, A: Tensor) -> Tensor:
        dropout = self.bank.dropout if self.training else 0.0
        return _project(x, A, dropout) if self.bank.basis is None else self.shared.project(x, A, dropout)

    def _pair(self, like: Tensor, own: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) in the dtype of the delta: autocast's, else the bank's."""
        device, own = like.device, own or {}
        low = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if low else self.bank.dtype
        if self.bank.basis is not None:
            A, B = self.bank.basis.to(device, dtype)
            return A[:, : self.site.in_features], B[: self.site.out_features]
        A = own["A"] if "A" in own else self.get_buffer("A")
        return A.to(dtype), own["B"].to(dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _used(banks: Iterable[nn.Module], table: SlotTable) -> list[tuple[Any, Pick]]:
    """The banks' shares that rows of this batch use. A compiler takes the answer and does not look inside."""
    chosen = current_route(table)
    picks = [(share, chosen.pick(share.bank, table)) for share in banks]  # type: ignore[arg-type]
    return [(share, pick) for share, pick in picks if pick is not None]


class AdaptedLinear(nn.Module):
    """A frozen base layer whose output gets the delta of the slot that each row is routed to."""

    def __init__(self, base: nn.Module, table: SlotTable) -> None:
        super().__init__()
        self.base = base
        self.banks = nn.ModuleList()
        self.table = table

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (rows, ..., in) -> (rows, ..., out) in the base's dtype."""
        y: Tensor = self.base(x, *args, **kwargs)
        for layer_bank, pick in _used(self.banks, self.table):
            y = layer_bank(x, y, pick)
        return y

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name in ("in_features", "out_features", "nf", "nx"):
            return getattr(super().__getattr__("base"), name)
        return super().__getattr__(name)


class AdaptedHead(nn.Module):
    """A task head kept whole for each slot: the base's own for slot 0, an adapter's for its rows."""

    def __init__(self, base: nn.Module, table: SlotTable) -> None:
        super().__init__()
        self.base = base
        self.banks = nn.ModuleList()
        self.table = table

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (rows, ...) -> the head's output, each row through its own slot's head."""
        used = _used(self.banks, self.table)
        if len(used) == 1 and used[0][1].slot is not None:
            return used[0][0].of_slot(used[0][1].slot, self.base, x)  # type: ignore[no-any-return]
        y: Tensor = self.base(x, *args, **kwargs)
        for bank, pick in used:
            for slot, mine in pick.groups:
                mine = mine.to(x.device)
                y = _placed(y, mine, bank.of_slot(slot, self.base, x[mine]).to(y.dtype))
        return y


def _placed(y: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    """y with those rows put in; outputs of fewer classes than others are filled up with -inf."""
    width = max(y.shape[-1], own.shape[-1])
    return _widened(y, width).index_copy(0, rows, _widened(own, width))


def _widened(y: Tensor, width: int) -> Tensor:
    return y if y.shape[-1] == width else F.pad(y, (0, width - y.shape[-1]), value=-torch.inf)


class HeadBank(nn.Module):
    """One head's share of a bank: each of its tensors with a leading slot axis."""

    def __init__(self, bank: BankState, name: str) -> None:
        super().__init__()
        self.bank, self.name = bank, name

    def tensors(self, slot: int) -> dict[str, Tensor]:
        """This slot's tensors by their names in the head."""
        return {name.replace("/", "."): value[slot] for name, value in self.named_parameters()}

    def of_slot(self, slot: int, base: nn.Module, x: Tensor) -> Tensor:
        """The base head's forward with this slot's tensors."""
        own = {name: value.to(x.dtype) for name, value in self.tensors(slot).items()}
        return torch.func.functional_call(base, own, (x,))  # type: ignore[no-any-return]
