"""Server-sent events, with a name and data."""

from __future__ import annotations

import json
from typing import Any


def named_event(name: str, data: Any) -> bytes:
    """One event."""
    return f"event: {name}\n".encode() + event(data)


def event(data: Any) -> bytes:
    """One event without a name."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
