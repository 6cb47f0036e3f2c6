"""What a server trains is checked where it is set."""

import pytest

from polyvera.errors import ServeError, SpecError
from polyvera.jobs.training_policy import TrainingPolicy


def test_an_invalid_policy_is_refused():
    assert not TrainingPolicy().train
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"slots": 0}, {"max_epochs": 0}, {"max_daily_tokens": 0}):
        with pytest.raises(ServeError, match=next(iter(wrong))):
            TrainingPolicy(**wrong)
    with pytest.raises(SpecError, match="did you mean 'lora'"):
        TrainingPolicy(method="lorra")
