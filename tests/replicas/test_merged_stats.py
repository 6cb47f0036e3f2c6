"""What several replicas hold, as one engine would report it."""

from polyvera.engine.adapter_cache import ResidentAdapter
from polyvera.engine.stats import EngineStats, RunningRequest
from polyvera.replicas.merged_stats import merged_stats
from polyvera.replicas.messages import Stats


def test_rows_slots_and_residents_add_up() -> None:
    rows = [RunningRequest("a@1", "t", 3), RunningRequest("", "u", 5)]
    own, other = ResidentAdapter("a@1", 10, 1, False), ResidentAdapter("b@1", 7, 0, False)
    one = Stats(1, (rows[0],), 2, (own, other), 4, {"steps": 1}, ("c@1",))
    two = Stats(2, (rows[1],), 3, (ResidentAdapter("a@1", 10, 2, True),), 4, {"steps": 8}, ("d@1", "c@1"))
    assert merged_stats([one, two], {"steps": 11}) == EngineStats(
        tuple(rows), 5, (ResidentAdapter("a@1", 20, 3, True), other), 8, {"steps": 11}, ("c@1", "d@1")
    )
    assert merged_stats([], {}) == EngineStats()
