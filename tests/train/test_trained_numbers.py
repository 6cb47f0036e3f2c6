"""What is published can be held by a model in any dtype."""

from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.method import METHODS
from polyvera.errors import DivergedError
from polyvera.model.load import Base
from polyvera.store.registry import Registry
from polyvera.train.recipe import Recipe
from polyvera.train.trained_numbers import LARGEST, check_numbers
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
