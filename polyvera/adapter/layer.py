"""AdaptedLinear: a frozen base layer and, for each bank of the model, that layer's share of the bank's slots.

One class and one forward serve solo training (a bank of one slot), fleets and serving alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvera.adapter.bank_state import BankState
from polyvera.adapter.route import Pick, current_route
from polyvera.adapter.side_stream import fork, join
from polyvera.adapter.slot_table import SlotTable, table_of
from polyvera.errors import SlotError


def _used(banks: Iterable[nn.Module], table: SlotTable) -> list[tuple[Any, Pick]]:
    """The banks' shares that rows of this batch use."""
    chosen = current_route(table)
    picks = [(share, chosen.pick(share.bank, table)) for share in banks]  # type: ignore[arg-type]
    return [(share, pick) for share, pick in picks if pick is not None]


@cache
def used_outside_graphs() -> Callable[[Iterable[nn.Module], SlotTable], list[tuple[Any, Pick]]]:
    """_used, of which a compiler takes the answer without looking inside; it imports the compiler, which takes long."""
    return torch.compiler.disable(_used)  # type: ignore[no-untyped-call,no-any-return]


# What a compiler can't follow, the route and the norms that were counted, is one opaque operation each: it asks at run
# time, so one graph serves every route and every slot.
@torch.library.custom_op("polyvera::local_slots", mutates_args=())
def _local_slots(x: Tensor, table: int, bank: int) -> Tensor:
    """The index of each token of x (..., features) in a bank, -1 where the token is not its: x.shape[:-1]."""
    found = table_of(table)
    return current_route(found).local(found.banks[bank], found, x)


@_local_slots.register_fake
def _(x: Tensor, table: int, bank: int) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.long)


@torch.library.custom_op("polyvera::norm_rows", mutates_args=())
def _norms(letters: Sequence[Tensor], m: Tensor, table: int, bank: int, site: str, is_training: bool) -> Tensor:
    """row_norm of every slot of a layer, (slots, out); letters: what it depends on."""
    with torch.set_grad_enabled(is_training):
        return table_of(table).banks[bank].norm_rows(site).clone()


@_norms.register_fake
def _(letters: Sequence[Tensor], m: Tensor, table: int, bank: int, site: str, is_training: bool) -> Tensor:
    return m.new_empty(m.shape, dtype=torch.promote_types(m.dtype, torch.float32))


class AdaptedLinear(nn.Module):
    """A frozen base layer whose output gets the delta of the slot that each row is routed to.

    has_tokens_first: whether its input is (tokens, rows, in).
    """

    has_tokens_first = False

    def __init__(self, base: nn.Module, table: SlotTable) -> None:
        super().__init__()
        self.base = base
        self.banks = nn.ModuleList()
        self.table = table

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (rows, ..., in) -> (rows, ..., out) in the base's dtype."""
        if torch.compiler.is_compiling():
            return self._compiled(x, self.base(x, *args, **kwargs))
        used = _used(self.banks, self.table)
        beside = fork()
        if beside is not None:
            with beside:
                for layer_bank, _ in used:
                    layer_bank.prepare(x)
        y: Tensor = self.base(x, *args, **kwargs)
        join()
        turned = self.has_tokens_first and y.dim() > 2
        x, y = (x.transpose(0, 1), y.transpose(0, 1)) if turned else (x, y)
        for layer_bank, pick in used:
            y = layer_bank(x, y, pick)
        return y.transpose(0, 1).contiguous() if turned else y

    def _compiled(self, x: Tensor, y: Tensor) -> Tensor:
        share: Any
        if self.has_tokens_first:
            raise SlotError("this model's layers get tokens before rows, which a compiled forward does not route")
        for share in self.banks:
            index = torch.ops.polyvera.local_slots(x.detach(), self.table.number, share.bank.position)
            y = share.by_index(x, y, index)
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
        self._used = used_outside_graphs()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (rows, ...) -> the head's output, each row by its slot's head. Raises SlotError for a device route."""
        if current_route(self.table).is_on_device:
            raise SlotError("a task head is kept whole for each slot, and Route.on_device() cannot route it")
        used = self._used(self.banks, self.table)
        if len(used) == 1 and used[0][1].slot is not None:
            return used[0][0].of_slot(used[0][1].slot, self.base, x)  # type: ignore[no-any-return]
        y: Tensor = self.base(x, *args, **kwargs)
        for bank, pick in used:
            for slot, mine in pick.groups_on(x.device)[0]:
                y = _placed(y, mine, bank.of_slot(slot, self.base, x[mine]).to(y.dtype))
        return y


def bare_head(head: nn.Module) -> nn.Module:
    """The base's own head, adapted or not."""
    return head.base if isinstance(head, AdaptedHead) else head


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
