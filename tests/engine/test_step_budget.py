"""How much a tenant has of a step follows how long the steps take."""

import pytest

from polyvera.engine.step_budget import SLOWER, TARGET_S, StepBudget, fair_shares


def after(seconds_of_each: float, fixed_s: float, whole: int = 320, steps: int = 400) -> tuple[StepBudget, list[float]]:
    """A budget after steps that take so long for each unit, and the time of each."""
    budget, times = StepBudget(whole), []
    for _ in range(steps):
        times.append(fixed_s + budget.most * seconds_of_each)
        budget.took(times[-1], budget.most)
    return budget, times


def test_steps_that_are_quick_have_all_that_there_is() -> None:
    budget, _ = after(TARGET_S / 1000, 0.01)
    assert budget.most == 320


def test_what_is_slow_has_fewer_until_a_step_takes_as_long_as_it_may() -> None:
    _, times = after(0.01, 0.04)
    assert times[0] > 30 * TARGET_S and max(times[10:]) < 1.4 * TARGET_S
    assert sum(times[100:]) / 300 > 0.7 * TARGET_S


def test_where_no_step_is_so_quick_it_is_some_of_the_smallest() -> None:
    budget, times = after(0.02, 10 * TARGET_S)
    assert 40 < budget.most < 60 and max(times[20:]) < 1.2 * SLOWER * 10 * TARGET_S


def test_steps_whose_time_is_not_their_size_have_all_that_there_is() -> None:
    budget, _ = after(0.0, 10 * TARGET_S)
    assert budget.most == 320


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_it_is_never_less_than_one_nor_more_than_the_whole(seconds: float) -> None:
    budget = StepBudget(7)
    budget.took(1e-9, 1)
    for _ in range(99):
        budget.took(seconds * budget.most, budget.most)
    assert budget.most == (7 if seconds < 1 else 1)


@pytest.mark.parametrize(
    ("needs", "num", "shares"),
    [
        ({"a": 9, "b": 9}, 10, {"a": 5, "b": 5}),
        ({"a": 99, "b": 2, "c": 99}, 12, {"b": 2, "a": 5, "c": 5}),
        ({"a": 1, "b": 99}, 1, {"a": 1, "b": 0}),
        ({"heavy": 99, "b": 99}, 8, {"heavy": 6, "b": 2}),
        ({"a": 1, "b": 2}, 9, {"a": 1, "b": 2}),
        ({}, 9, {}),
    ],
)
def test_shares_are_fair_and_none_is_lost(needs: dict[str, int], num: int, shares: dict[str, int]) -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 1.0, "heavy": 3.0}
    assert fair_shares(needs, weights, num) == shares
