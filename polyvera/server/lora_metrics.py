"""What gateways that choose a server for each adapter read of it, under the names that vLLM gives it.

The Gateway API's inference extension reads vllm:lora_requests_info (its value is the time, so that the latest set of
labels counts), vllm:num_requests_running, vllm:num_requests_waiting and vllm:kv_cache_usage_perc.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import time

from prometheus_client.core import GaugeMetricFamily, Metric

from polyvera.engine.stats import EngineStats

MAX_NAMES = 256  # in one label


def lora_metrics(stats: EngineStats, max_rows: int) -> Iterator[Metric]:
    """The four of them. Adapters that are resident count as running: a request for one waits for no load."""
    resident = _names(one.adapter for one in stats.resident)
    waiting = [name for name in _names(stats.waiting_adapters) if name not in resident]
    labels = ["running_lora_adapters", "waiting_lora_adapters", "max_lora"]
    info = GaugeMetricFamily("vllm:lora_requests_info", "Resident and waiting adapters.", labels=labels)
    info.add_metric([",".join(resident), ",".join(waiting), str(stats.num_slots)], time())
    yield info
    yield GaugeMetricFamily("vllm:num_requests_running", "Requests that run.", len(stats.running))
    yield GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", stats.waiting)
    yield GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Rows of the cache in use, 0 to 1.", len(stats.running) / max_rows
    )


def _names(adapters: Iterable[str]) -> list[str]:
    """Without versions, each once, the first MAX_NAMES."""
    return list(dict.fromkeys(adapter.partition("@")[0] for adapter in adapters))[:MAX_NAMES]
