"""A gateway finds which adapters are here, and how busy the server is."""

from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.server.lora_metrics import MAX_NAMES, lora_metrics


def test_the_four_that_gateways_read() -> None:
    resident = tuple(ResidentAdapter(name, 8, 0, False) for name in ("a@2", "a@1", "b@1"))
    stats = EngineStats((RunningRequest("a@2", "t", 3),), 5, resident, 16, waiting_adapters=("b@1", "c@1"))
    found = {metric.name: metric.samples[0] for metric in lora_metrics(stats, 4)}
    info = found["vllm:lora_requests_info"]
    assert info.labels == {"running_lora_adapters": "a,b", "waiting_lora_adapters": "c", "max_lora": "16"}
    assert info.value > 1e9, "the time"
    assert [found[f"vllm:num_requests_{word}"].value for word in ("running", "waiting")] == [1, 5]
    assert found["vllm:kv_cache_usage_perc"].value == 0.25


def test_a_label_is_bounded() -> None:
    stats = EngineStats(resident=tuple(ResidentAdapter(f"a{i}@1", 8, 0, False) for i in range(9 * MAX_NAMES)))
    info = next(iter(lora_metrics(stats, 4))).samples[0]
    assert info.labels["running_lora_adapters"].count(",") == MAX_NAMES - 1
