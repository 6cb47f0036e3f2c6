"""What a body may ask for, and what it means left out."""

import pytest
from pydantic import ValidationError

from polyvera.server.job_requests import FineTuningBody

GIVEN = {"model": "base", "training_file": "file-x"}
HYPER = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}


def body(**more):
    return FineTuningBody.model_validate(GIVEN | more)


@pytest.mark.parametrize(
    "more",
    [{"hyperparameters": HYPER}, {"method": {"type": "supervised", "supervised": {"hyperparameters": HYPER}}}],
)
def test_hyperparameters_are_read_where_they_stand(more):
    choices = body(**more, seed=7, suffix="a", metadata={"k": "v"}, integrations=[]).choices
    assert (choices.num_epochs, choices.batch_size, choices.lr_multiplier) == (2, 4, 0.5)
    assert (choices.seed, choices.suffix, choices.metadata) == (7, "a", {"k": "v"})


def test_what_is_left_out_is_auto_and_the_seed_drawn():
    choices = body(hyperparameters={"n_epochs": "auto"}).choices
    assert (choices.num_epochs, choices.batch_size, choices.lr_multiplier, choices.suffix) == (None,) * 4
    assert body().choices.seed != body().choices.seed and body(seed=0).choices.seed == 0


@pytest.mark.parametrize(
    "more",
    [
        {"hyperparameters": {"n_epochs": 0}},
        {"hyperparameters": {"batch_size": 10**9}},
        {"hyperparameters": {"learning_rate_multiplier": 0}},
        {"hyperparameters": {"learning_rate_multiplier": 1e-300}},
        {"hyperparameters": {"learning_rate_multiplier": float("nan")}},
        {"hyperparameters": {"n_epochs": True}},
        {"method": {"type": "reinforcement"}},
        {"method": {"type": "dpo", "supervised": {}}},
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}},
        {"hyperparameters": {}, "method": {"type": "supervised"}},
        {"suffix": "a/b"},
        {"suffix": "x" * 41},
        {"seed": -1},
        {"metadata": {str(i): "" for i in range(17)}},
        {"training_file": 3},
    ],
)
def test_what_cannot_be_is_refused(more):
    with pytest.raises(ValidationError):
        body(**more)


@pytest.mark.parametrize("more", [{"beta": 1}, {"integrations": [{"type": "wandb"}]}])
def test_what_is_not_done_is_refused(more):
    with pytest.raises(ValidationError, match="leave it out"):
        body(**more)
