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
    """What an engine holds.

    running: the requests that run. waiting: how many wait. waiting_adapters: 'name@version' of those. resident:
    adapters in slots, the latest used first. num_slots: for resident adapters. totals: counts since the start by name,
    such as 'steps' and 'prompt_tokens'.
    """

    running: tuple[RunningRequest, ...] = ()
    waiting: int = 0
    resident: tuple[ResidentAdapter, ...] = ()
    num_slots: int = 0
    totals: Mapping[str, int] = field(default_factory=dict)
    waiting_adapters: tuple[str, ...] = ()
