"""EngineStats: what an engine holds at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyvera.engine.adapter_cache import ResidentAdapter


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that runs. adapter: '' is the base. num_tokens: of prompt and answer so far."""

    adapter: str
    tenant: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What runs, how many wait, what is resident (the latest used first), and counts since the start."""

    running: tuple[RunningRequest, ...] = ()
    waiting: int = 0
    resident: tuple[ResidentAdapter, ...] = ()
    num_slots: int = 0
    totals: Mapping[str, int] = field(default_factory=dict)
