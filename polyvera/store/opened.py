"""opened: the registry that a caller means."""

from __future__ import annotations

import os
from pathlib import Path

from polyvera.settings.field import DEFAULT_STORE, STORE
from polyvera.store.registry import Registry


def opened(store: Registry | str | Path | None = None) -> Registry:
    """A registry, or that of a folder or URL; None is that of POLYVERA_STORE, else 'adapters'."""
    if isinstance(store, Registry):
        return store
    return Registry(store if store is not None else os.environ.get(STORE.env) or DEFAULT_STORE)
