"""Where a run's results go: tried with a real write before any work is done, and never the end of an adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import uuid4

from polyvera.adapter.adapter import Adapter
from polyvera.errors import RecipeError, StoreError, message_of
from polyvera.store.file.codec import encode
from polyvera.store.paths import ADAPTERS
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

KEPT = "adapter.safetensors"


def check_store(registry: Registry) -> None:
    """Writes a file to the store and removes it. Raises StoreError where that can't be done."""
    inside = f"{ADAPTERS}/" if ADAPTERS in (registry.files.names() or ()) else ""
    path = f"{inside}.writable-{uuid4().hex}"
    try:
        registry.files.replace(path, b"")
        registry.files.delete(path)
    except StoreError:
        raise
    except Exception as error:  # whatever the file system raises
        raise StoreError(f"cannot write to the store {registry.url}: {message_of(error)}") from error


def check_folder(folder: Path) -> None:
    """Makes the folder, writes a file to it and removes it. Raises RecipeError where that can't be done."""
    probe = folder / f".writable-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        why = getattr(error, "strerror", None) or error
        raise RecipeError(f"cannot write to output={str(folder)!r}: {why}; choose another folder") from error


def put_or_keep(
    registry: Registry, name: str, adapter: Adapter, *, alias: str | None, dtype: str, folder: Path | None
) -> AdapterRef:
    """Publishes an adapter; where that fails, it is kept in a file that the error names.

    folder: where the file goes, None for a new temporary folder. Raises StoreError, or FormatError for an adapter that
    no file can hold.
    """
    try:
        return registry.put(name, adapter, alias=alias, dtype=dtype)
    except Exception as error:  # hours of work are not lost to whatever a file system raises
        data = encode(adapter, dtype)
        path = (folder or Path(tempfile.mkdtemp(prefix="polyvera-"))) / KEPT
        path.write_bytes(data)
        raise StoreError(f"{message_of(error)}; the trained adapter is kept in {path}") from error
