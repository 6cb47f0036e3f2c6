"""Adapter files that were changed by hand and given sums that fit again, as damage never would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import xxhash

NO_DIGEST, NO_CHECKSUM = "0" * 64, "0" * 32


def header_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The safetensors header, and the two lines in it."""
    tree = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    kind, own = map(json.loads, tree["__metadata__"]["polyvera"].split("\n"))
    return tree, kind, own


def forged(
    data: bytes,
    change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object] = lambda tree, kind, own: None,
    edit: Callable[[str], str] = lambda text: text,
    section: Callable[[bytes], bytes] = lambda section: section,
) -> bytes:
    """The file with its header changed as a tree, then as text, and its data section changed, under true sums."""
    tree, kind, own = header_of(data)
    tail = section(data[8 + int.from_bytes(data[:8], "little") :])
    own["digest"], own["checksum"] = NO_DIGEST, NO_CHECKSUM
    change(tree, kind, own)
    if isinstance(tree.get("__metadata__"), dict) and "polyvera" in tree["__metadata__"]:
        tree["__metadata__"]["polyvera"] = f"{json.dumps(kind, separators=(',', ':'))}\n{json.dumps(own)}"
    return sealed(edit(json.dumps(tree)), tail)


def sealed(text: str, tail: bytes) -> bytes:
    """A file of that header and data with its sums in place of the zeros."""
    header = text.encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + tail
    data = data.replace(NO_DIGEST.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
    return data.replace(NO_CHECKSUM.encode(), xxhash.xxh3_128_hexdigest(data).encode(), 1)
