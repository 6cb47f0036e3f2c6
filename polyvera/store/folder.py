"""write_folder: a folder of files for other programs, written whole or not at all, over nothing but its own kind."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import uuid4

from polyvera.errors import StoreError


def check_free(path: Path, own_files: Collection[str], overwrite: bool) -> None:
    """Raises StoreError where a folder may not be written: over other files, or over an adapter unless asked to."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; name a folder")
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    others = [name for name in held if name not in own_files]
    if others:
        raise StoreError(
            f"{path} holds {others[0]!r}, no part of an exported adapter, and is not replaced; name another"
        )
    if held and not overwrite:
        raise StoreError(f"{path} holds an adapter; pass overwrite=True to replace it, or name another folder")


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Written aside and renamed, so that a reader never sees half an adapter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (path.with_name(f".{path.name}.{uuid4().hex}.{word}") for word in ("new", "old"))
    try:
        aside.mkdir()
        for name, content in files.items():
            (aside / name).write_bytes(content)
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
