"""The head of a regression in training, which learns labels as their Span has them, and outside, where it answers in
their unit.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layout import Entry
from polyvera.data.label_span import ITSELF, Span, inverse, learned_span, put_into_unit
from polyvera.data.tables import Table
from polyvera.errors import RecipeError
from polyvera.model.load import Base
from polyvera.train.recipe import Recipe

FARTHEST = 1000.0  # of a head's numbers, in deviations of the labels that it is to learn


def span_of(recipe: Recipe, base: Base, table: Table) -> Span:
    """What the labels of the table are learnt as by the head that the recipe trains."""
    if not table.row.has_head:
        return table.span
    names = base.head if recipe.full else recipe.spec(base.head).head
    return learned_span(table.span, head_tensors(base.model, names))


def in_unit(adapter: Adapter, span: Span) -> Adapter:
    """The adapter that answers in the unit of the labels, of one that answers as the loss takes them."""
    if span == ITSELF:
        return adapter
    flat = adapter.flat.clone()
    put_into_unit({e.key: flat[e.offset : e.offset + e.size].view(e.shape) for e in _head_entries(adapter)}, span)
    return replace(adapter, flat=flat)


def as_learned(adapter: Adapter, span: Span) -> Adapter:
    """The inverse of in_unit()."""
    return in_unit(adapter, inverse(span))


def begin(bank: Bank | None, slot: int, base: Base, span: Span, start: Adapter | None = None) -> None:
    """Makes a slot (without a bank the model itself) what a run begins with: the identity, or `start`.

    Raises RecipeError for a start that answers numbers of another size than the labels.
    """
    if bank is None:
        put_into_unit({} if _is_new(base) else head_tensors(base.model, base.head), inverse(span))
    elif start is not None:
        bank.put(slot, _learned_near(start, span))
    else:
        bank.start(slot, _first_head(base, bank, span))


def end(bank: Bank | None, slot: int, base: Base, span: Span) -> None:
    """Puts a trained head into the unit of its labels, in its slot or in the model itself."""
    if bank is None:
        put_into_unit(head_tensors(base.model, base.head), span)
    elif span != ITSELF:
        bank.put(slot, in_unit(bank.extract(slot), span))


def _learned_near(start: Adapter, span: Span) -> Adapter:
    """as_learned(), near enough to be trained from there. Raises RecipeError."""
    found = as_learned(start, span)
    head = [found.flat[e.offset : e.offset + e.size] for e in _head_entries(found)]
    if span != ITSELF and not all(float(part.abs().max()) <= FARTHEST for part in head):
        raise RecipeError(
            "the adapter to begin from answers numbers of quite another size than these labels: begin without it, or "
            "scale the labels to what it was trained on"
        )
    return found


def _head_entries(adapter: Adapter) -> list[Entry]:
    return [adapter.layout.entries[key] for key, _ in adapter.layout.head]


def _first_head(base: Base, bank: Bank, span: Span) -> dict[str, Tensor]:
    """A head that came with its checkpoint answers in the unit of the labels already, a new one in none."""
    assert bank.spec is not None
    own = head_tensors(base.model, bank.spec.head)
    if span != ITSELF and not _is_new(base):
        own = {key: tensor.detach().clone() for key, tensor in own.items()}
        put_into_unit(own, inverse(span))
    return own


def _is_new(base: Base) -> bool:
    return any(key.startswith(f"{name}.") for key in head_tensors(base.model, base.head) for name in base.untrained)
