"""merged_stats: the stats of several replicas as one engine would report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.stats import EngineStats
from polyvera.replicas.messages import Stats


def merged_stats(several: Sequence[Stats], totals: Mapping[str, int]) -> EngineStats:
    """The sum over replicas. totals: counts since the start, those of replicas that have ended included."""
    resident: dict[str, ResidentAdapter] = {}
    for one in (one for stats in several for one in stats.resident):
        old = resident.get(one.adapter, ResidentAdapter(one.adapter, 0, 0, False))
        resident[one.adapter] = ResidentAdapter(
            one.adapter,
            old.num_bytes + one.num_bytes,
            old.num_users + one.num_users,
            old.is_pinned or one.is_pinned,
        )
    return EngineStats(
        running=tuple(row for stats in several for row in stats.running),
        waiting=sum(stats.waiting for stats in several),
        resident=tuple(resident.values()),
        num_slots=sum(stats.num_slots for stats in several),
        totals=dict(totals),
        waiting_adapters=tuple(dict.fromkeys(name for stats in several for name in stats.waiting_adapters)),
    )
