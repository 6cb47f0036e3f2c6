"""load: adapters, in memory or by their names in a store, into a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polyvera.adapter import inject
from polyvera.adapter.adapter import Adapter
from polyvera.model.frozen_head import LabelReader, with_head
from polyvera.store.opened import opened
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

AnyAdapter = Adapter | AdapterRef | str


def load(
    model: nn.Module,
    adapters: AnyAdapter | Sequence[AnyAdapter],
    *,
    names: str | Sequence[str | None] | None = None,
    check_base: bool = True,
    store: Registry | str | Path | None = None,
) -> list[int]:
    """Brings trained adapters into the model for inference; returns the slot of each.

    model: changed in place; eject() gives it back. Adapters of one layout share a bank in it; different methods, ranks,
        targets and bases live side by side.
    adapters: one, or N of them, each an Adapter or one of the store: 'name' for its latest version, 'name@3',
        'name@alias', or an AdapterRef.
    names: one for each, by which route("name") finds its slot; one that is there already goes to the new adapter. By
        default an adapter of the store has the name by which it was asked for, and others have none.
    check_base: refuse an adapter that was trained on another base model.
    store: a registry, or its folder or URL; by default that of POLYVERA_STORE, else 'adapters'.

    Raises FingerprintError for an adapter of another base model, LayoutError where layers don't fit, BasisError,
    SlotError where names are not one for each, NotFoundError or FormatError for what the store cannot give; on an error
    the model is as it was.
    """
    several = [adapters] if isinstance(adapters, AnyAdapter) else list(adapters)
    called = _names(several) if names is None else names
    return inject.load(model, _whole(model, _read(several, store)), names=called, check_base=check_base)


def _read(several: Iterable[AnyAdapter], store: Registry | str | Path | None) -> list[Adapter]:
    return [one if isinstance(one, Adapter) else opened(store).get(one) for one in several]


def _whole(model: nn.Module, adapters: list[Adapter]) -> list[Adapter]:
    """The adapters with their heads, of which those that are made need the tokenizer that lies beside the model."""
    if all(adapter.spec.frozen_head is None for adapter in adapters):
        return adapters
    from transformers import AutoTokenizer

    bare: Any = model
    reader = LabelReader(bare, AutoTokenizer.from_pretrained(bare.name_or_path, trust_remote_code=False))
    return [with_head(adapter, reader) for adapter in adapters]


def _names(several: Iterable[AnyAdapter]) -> list[str | None]:
    """The first adapter asked for by a name gets it."""
    asked = [None if isinstance(one, Adapter) else str(one) for one in several]
    return [None if name in asked[:i] else name for i, name in enumerate(asked)]
