"""Where vLLM's adapters come from: a store, an adapter file or a folder of PEFT's, named by a path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.errors import FormatError, NotFoundError
from polyvera.store.file.codec import decode
from polyvera.store.foreign import CONFIG_BYTES, CONFIG_NAME
from polyvera.store.peft import import_peft
from polyvera.store.reference import SUFFIX
from polyvera.store.registry import Registry
from polyvera.vllm.settings import STORE

SCHEME = "polyvera://"
# PEFT's names of what is vectors beside a shared pair; a name that matrices have as well is vLLM's to read.
PEFT_TYPES = {r.peft_type for r in METHODS.values() if r.shares_basis} - {
    r.peft_type for r in METHODS.values() if not r.shares_basis
}


def read_adapter(path: str, store: str, skeleton: Callable[[], nn.Module]) -> Adapter | None:
    """The adapter at a path, None for what vLLM reads itself. Raises NotFoundError, FormatError and import_peft()'s.

    path: `polyvera://name@version` in the store, the file of an adapter, or a folder. skeleton: makes the base model
    as transformers has it, without weights.
    """
    if path.startswith(SCHEME):
        return _open(store, path).get(path.removeprefix(SCHEME))
    if path.endswith(SUFFIX) and Path(path).is_file():
        adapter = decode(Path(path).read_bytes())
        return _open(store, path).bases.attached(adapter) if adapter.spec.made_basis else adapter
    return import_peft(path, skeleton()) if _is_vectors(Path(path)) else None


def _open(store: str, path: str) -> Registry:
    if not store:
        raise NotFoundError(
            f"{path} or its basis is in a store, and this server has none: start it with {STORE}=<folder or URL>"
        )
    return Registry(store)


def _is_vectors(folder: Path) -> bool:
    config = folder / CONFIG_NAME
    if not config.is_file() or config.stat().st_size > CONFIG_BYTES:
        return False
    try:
        tree = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{config} is not JSON ({error})") from error
    return isinstance(tree, dict) and tree.get("peft_type") in PEFT_TYPES
