"""What is published can be held by a model in any dtype."""

from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.method import METHODS
from polyvera.errors import DivergedError
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.fleet.journal import QUARANTINED
from polyvera.train.fleet.one_process import train_here
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows
from polyvera.train.trained_numbers import LARGEST, check_loss, check_numbers
from polyvera.train.trainer import train


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e30, 2 * LARGEST])
def test_one_number_is_enough(number: float) -> None:
    check_numbers([torch.tensor([]), torch.tensor([0.0, LARGEST, -LARGEST])], 1.0)
    with pytest.raises(DivergedError, match=r"at a lower lr than 3"):
        check_numbers([torch.tensor([0.0, 1.0]), torch.tensor([1.0, number])], 3.0)


@pytest.mark.parametrize("method", [*METHODS, None])
def test_a_run_of_a_finite_loss_may_end_in_numbers_that_no_model_can_hold(
    counting: str, tmp_path: Path, method: str | None
) -> None:
    kept = {"name": "t/x", "store": str(tmp_path / "store"), "method": method, "rank": 2}
    way = kept if method else {"full": True, "output": str(tmp_path / "run")}
    recipe = Recipe(model="tiny", data=counting, lr=1e30, max_steps=1, **way)
    with pytest.raises(DivergedError, match=r"at a lower lr than 1e\+30"):
        train(recipe, base=Base(make_model(), make_tokenizer()), progress=False)
    assert not Registry(tmp_path / "store").list() and not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("losses", "own", "bare", "is_refused"),
    [
        ([2.0, 1.0], 9.0, 2.0, False),  # nobody asks where the losses fell
        ([2.0], 2.5, 2.0, False),
        ([2.0], 4.5, 2.0, True),
        ([2.0, 5.0], 3.0, 2.0, False),  # one hard batch
        ([2.0, 5.0], 5.0, 2.0, True),
        ([2.0, 5.0], 5.0, 4.0, False),  # hard rows
        ([0.01, 0.9], 0.9, 0.01, False),
        ([2.0, 5.0], float("nan"), 2.0, True),
        ([0.7, 9.0], 9.0, None, True),
        ([0.7, 9.0], 1.5, None, False),
    ],
)
def test_an_adapter_far_worse_than_nothing_is_refused(losses, own, bare, is_refused) -> None:
    def check() -> None:
        check_loss(losses, lambda: own, None if bare is None else lambda: bare, 3.0)

    if is_refused:
        with pytest.raises(DivergedError, match=r"nothing is published; train again at a lower lr than 3"):
            check()
    else:
        check()


@pytest.mark.parametrize("max_steps", [1, 4])
def test_a_rate_far_too_high_publishes_nothing_alone_or_in_a_fleet(
    counting: str, tmp_path: Path, max_steps: int
) -> None:
    chosen = {"lr": 30.0, "warmup": 0.0, "max_steps": max_steps, "targets": ("q_proj", "lm_head"), "method": "lora"}
    recipe = Recipe(model="tiny", data=counting, name="t/x", store=str(tmp_path / "store"), **chosen)
    with pytest.raises(DivergedError, match=r"the loss of the training rows is .* lower lr than 30"):
        train(recipe, base=Base(make_model(), make_tokenizer()), progress=False)
    assert not Registry(tmp_path / "store").list()
    several = Recipe(model="tiny", data="memory", fleet=True, **chosen)
    found = train_here(several, [Tenant("a", TenantRows(counting))], base=Base(make_model(), make_tokenizer()))
    [outcome] = found.outcomes
    assert outcome.status == QUARANTINED and "the loss of the training rows is" in outcome.problem
