"""Metrics: what a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from polyvera.engine.stats import EngineStats
from polyvera.errors import DamagedFileError, DisconnectedError, StoreError
from polyvera.server.error_response import ErrorResponse, error_response
from polyvera.server.lora_metrics import lora_metrics
from polyvera.store.reference import AdapterRef

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # fewer: there are as many for each adapter
MAX_ADAPTERS, OTHER, BASE_LABEL = 256, "other", "base"
COUNTED = {
    "steps": "Steps of the engine.",
    "prompt_tokens": "Tokens of prompts computed.",
    "answer_tokens": "Tokens of answers.",
    "reused_tokens": "Tokens of prompts taken from kept prefixes.",
    "hits": "Requests whose adapter was resident.",
    "loads": "Adapters loaded from the store.",
    "evictions": "Adapters evicted from their slots.",
    "failed_loads": "Adapters that could not be loaded.",
}
OBSERVED = {
    "load_s": "Seconds to read and check an adapter.",
    "queue_s": "Seconds that a request waited for its row.",
    "step_s": "Seconds of a step of the engine.",
}


class AdapterLabels:
    """The label of an adapter: its name, for the first MAX_ADAPTERS that are met, "other" beyond."""

    def __init__(self, most: int = MAX_ADAPTERS) -> None:
        self._most, self._names = most, set[str]()

    def label(self, adapter: AdapterRef | None) -> str:
        """Of one adapter, without its version; "base" for none."""
        if adapter is None:
            return BASE_LABEL
        if adapter.name not in self._names:
            if len(self._names) >= self._most:
                return OTHER
            self._names.add(adapter.name)
        return adapter.name


class Metrics:
    """The counts of one server, in a registry of their own. observe() is for the engine."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        at: Any = {"registry": self._registry, "namespace": "polyvera"}
        self._observed = {
            name: Histogram(name.replace("_s", "_seconds"), text, buckets=SECONDS, **at)
            for name, text in OBSERVED.items()
        }
        self.adapters = AdapterLabels()
        self.first = Histogram(
            "time_to_first_token_seconds", "From the request to its first token.", ["adapter"], buckets=FIRST_S, **at
        )
        self.between = Histogram("inter_token_seconds", "Between two tokens of an answer.", buckets=SECONDS, **at)
        self.tokens = Counter("tokens", "Tokens by tenant and adapter.", ["tenant", "adapter", "kind"], **at)
        labels = ["tenant", "adapter", "finish"]
        self.answers = Counter("answers", "Answers by how they ended.", labels, **at)
        self.requests = Counter("requests", "Requests by route and status.", ["route", "status"], **at)
        self.store_faults = Counter("store_faults", "Errors of the store and its files, by their code.", ["code"], **at)
        self.refused = Counter("refused", "Requests that ended in an error, by status.", ["status"], **at)

    def observe(self, name: str, seconds: float) -> None:
        """Takes in a time that the engine measured."""
        if name in self._observed:
            self._observed[name].observe(seconds)

    def failed(self, error: BaseException, request_id: str) -> ErrorResponse:
        """Counts an error by its status; how it is reported."""
        response = error_response(error, request_id)
        if not isinstance(error, DisconnectedError):
            self.refused.labels(str(response.status)).inc()
        if response.status >= 500 and isinstance(error, StoreError | DamagedFileError):
            self.store_faults.labels(str(response.code)).inc()
        return response

    def watch(self, stats: Callable[[], EngineStats], max_rows: int) -> None:
        """Shows what the engine holds from now on. max_rows: of its batch."""
        self._registry.register(EngineCollector(stats, max_rows))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class EngineCollector:
    """Reads an engine's statistics each time that the metrics are read."""

    def __init__(self, stats: Callable[[], EngineStats], max_rows: int) -> None:
        self._stats, self._max_rows = stats, max_rows

    def collect(self) -> Iterator[Metric]:
        """The gauges and counters at this moment."""
        stats = self._stats()
        yield GaugeMetricFamily("polyvera_running", "Requests that run.", len(stats.running))
        yield GaugeMetricFamily("polyvera_waiting", "Requests that wait.", stats.waiting)
        yield GaugeMetricFamily("polyvera_resident_adapters", "Adapters in slots.", len(stats.resident))
        yield GaugeMetricFamily("polyvera_slots", "Slots for adapters.", stats.num_slots)
        distinct = len({row.adapter for row in stats.running})
        yield GaugeMetricFamily("polyvera_running_adapters", "Adapters mixed in the running batch.", distinct)
        for name, value in stats.totals.items():
            yield CounterMetricFamily(f"polyvera_engine_{name}", COUNTED.get(name, name), value)
        yield from lora_metrics(stats, self._max_rows)
