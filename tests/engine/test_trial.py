"""What a trial finds: layers by the shapes of their inputs, and a batched forward that is not the model's own."""

import pytest
import torch
from tiny_serve import make_llama
from torch import nn

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.trial import LOW_TOLERANCE, TOLERANCE, check_close, check_free, recording, trying
from polyvera.errors import ServeError


def test_layers_are_recorded_by_all_of_their_inputs() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Flatten(0, 1), nn.Linear(2, 2), nn.Flatten(0), nn.Linear(12, 1))
    layers: set[str] = set()
    with recording(model, layers, 3):
        model(torch.ones(3, 2, 2))
    assert layers == {"0", "2"} and not any(m._forward_pre_hooks for m in model.modules())
    layers.clear()
    with recording(model, layers, 3):
        model(torch.ones(3, 2, 2))
        model[0](torch.ones(4, 2, 2))
        model[2](torch.ones(4, 2))
    assert layers == set(), "one call of another shape is enough"


def test_a_trial_that_fails_is_undone_and_says_how_rows_lie() -> None:
    model, undone = make_llama(), []
    with (
        pytest.raises(
            ServeError,
            match="LlamaForCausalLM reads more of a forward .* cannot be called with packed rows .*no such thing",
        ),
        trying(model, lambda: undone.append(1), "packed"),
    ):
        raise ValueError("no such thing")
    with pytest.raises(ServeError, match="^as it was$"), trying(model, lambda: undone.append(2), "packed"):
        raise ServeError("as it was")
    with pytest.raises(KeyboardInterrupt), trying(model, lambda: undone.append(3), "packed"):
        raise KeyboardInterrupt
    with trying(model, lambda: undone.append(4), "packed"):
        pass
    assert undone == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_is_close_relative_to_its_largest_number(dtype: torch.dtype) -> None:
    tolerance, expected = TOLERANCE.get(dtype, LOW_TOLERANCE), torch.full((2, 2), 8.0, dtype=dtype)
    model = make_llama()
    check_close(model, expected * (1 + 0.5 * tolerance), expected, "packed")
    for found in (expected * (1 + 4 * tolerance), expected * torch.nan):
        with pytest.raises(ServeError, match="answers differently when its rows are packed"):
            check_close(model, found, expected, "packed")


def test_a_model_in_use_is_refused() -> None:
    model = make_llama()
    check_free(model, False)
    with pytest.raises(ServeError, match="belongs to another engine"):
        check_free(model, True)
    inject(model, AdapterSpec(rank=2))
    with pytest.raises(ServeError, match=r"eject\(model\) first"):
        check_free(model, False)
