"""What is counted stands in Prometheus' text."""

from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.errors import BusyError, DisconnectedError
from polyvera.server.metrics import AdapterLabels, Metrics
from polyvera.store.reference import AdapterRef


def values(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_times_are_observed_and_unknown_ones_left_out() -> None:
    metrics = Metrics()
    for name in ("load_s", "queue_s", "step_s", "step_s", "other_s"):
        metrics.observe(name, 0.2)
    found = values(metrics)
    assert found["polyvera_step_seconds_count"] == 2 and found["polyvera_load_seconds_sum"] == 0.2
    assert not any("other" in name for name in found)


def test_an_engine_is_read_each_time() -> None:
    running = (RunningRequest("a@1", "t", 3), RunningRequest("a@1", "t", 4), RunningRequest("", "t", 5))
    stats = [EngineStats(), EngineStats(running, 7, (ResidentAdapter("a@1", 8, 2, False),), 16, {"steps": 9, "new": 1})]
    metrics = Metrics()
    metrics.watch(lambda: stats[-1], 8)
    found = values(metrics)
    assert (found["polyvera_running"], found["polyvera_waiting"], found["polyvera_slots"]) == (3, 7, 16)
    assert (found["polyvera_running_adapters"], found["polyvera_resident_adapters"]) == (2, 1)
    assert (found["polyvera_engine_steps_total"], found["polyvera_engine_new_total"]) == (9, 1)
    stats.pop()
    assert values(metrics)["polyvera_running"] == 0


def test_errors_are_counted_by_status() -> None:
    metrics = Metrics()
    assert metrics.failed(BusyError("later"), "id").status == 429
    for _ in range(2):
        assert metrics.failed(RuntimeError("x"), "id").status == 500
    found = values(metrics)
    assert (found['polyvera_refused_total{status="429"}'], found['polyvera_refused_total{status="500"}']) == (1, 2)


def test_a_client_that_has_gone_is_no_refusal() -> None:
    metrics = Metrics()
    metrics.failed(DisconnectedError("gone"), "id")
    assert not any("refused" in name and "{" in name for name in values(metrics))


def test_adapters_have_labels_of_their_own_up_to_a_number() -> None:
    labels = AdapterLabels(2)
    refs = [AdapterRef(name, version, "", 0) for name, version in (("a", 1), ("a", 2), ("b", 1), ("c", 1), ("b", 9))]
    assert [labels.label(ref) for ref in (*refs, None)] == ["a", "a", "b", "other", "b", "base"]


def test_servers_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.answers.labels("t", "a", "stop").inc()
    assert 'polyvera_answers_total{adapter="a",finish="stop",tenant="t"}' in values(one)
    assert not any("answers_total{" in name for name in values(other))
