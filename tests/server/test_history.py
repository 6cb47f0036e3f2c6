"""The last hour, line by line."""

from polyvera.server.history import MAX_GROUPS, NUM_STEPS, STEP_S, ActivityHistory


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def lines(
    history: ActivityHistory, group_by: str = "adapter", tenant: str | None = None
) -> dict[str, dict[str, list[float]]]:
    return {line["name"]: line for line in history.series(group_by, tenant)["data"]}  # type: ignore[attr-defined]


def test_tokens_and_first_tokens_stand_in_their_step() -> None:
    clock = Clock()
    history = ActivityHistory(clock)
    history.add(("acme", "acme/one"), 1, 0.5)
    history.add(("acme", "acme/one"), 59, 1.5)
    clock.now += 2 * STEP_S
    history.add(("acme", "acme/two"), 30)
    found = lines(history)
    assert list(found) == ["acme/one", "acme/two"] and all(
        len(found["acme/one"][key]) == NUM_STEPS for key in ("tokens_per_s", "first_token_s", "waiting")
    )
    assert found["acme/one"]["tokens_per_s"][-3:] == [2.0, 0.0, 0.0]
    assert found["acme/one"]["first_token_s"][-3:] == [1.0, None, None]
    assert found["acme/two"]["tokens_per_s"][-1] == 1.0
    assert lines(history, "tenant")["acme"]["tokens_per_s"][-3:] == [2.0, 0.0, 1.0]
    clock.now += NUM_STEPS * STEP_S
    assert all(not any(line["tokens_per_s"]) for line in lines(history).values())


def test_who_waits_still_waits_in_the_next_step() -> None:
    clock = Clock()
    history = ActivityHistory(clock)
    history.wait(("acme", "a"), 3)
    clock.now += STEP_S
    history.wait(("acme", "a"), -2)
    clock.now += STEP_S
    history.wait(("acme", "a"), -1)
    clock.now += STEP_S
    assert lines(history)["a"]["waiting"][-4:] == [3, 3, 1, 0] and not history._waiting


def test_a_tenant_sees_its_own() -> None:
    history = ActivityHistory()
    for tenant in ("acme", "globex"):
        history.add((tenant, "base"), 30)
    assert lines(history)["base"]["tokens_per_s"][-1] == 2.0
    assert (
        list(lines(history, "tenant", "acme")) == ["acme"]
        and lines(history, "adapter", "acme")["base"]["tokens_per_s"][-1] == 1.0
    )


def test_what_is_kept_and_shown_is_bounded() -> None:
    history = ActivityHistory()
    for i in range(9 * MAX_GROUPS):
        history.add(("t", f"a{i}"), 1)
    assert len(history._steps[-1].groups) == MAX_GROUPS + 1
    found = lines(history)
    assert (
        len(found) == 9 and round(sum(line["tokens_per_s"][-1] for line in found.values()) * STEP_S) == 9 * MAX_GROUPS
    )
