"""Log-probabilities made piece by piece are those of all logits at once, and so are their gradients."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import make_model
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.data import target_logprobs as module
from polyvera.data.encoding import IGNORED
from polyvera.data.target_logprobs import plain_logprobs, target_logprobs
from polyvera.data.target_tokens import TargetTokens

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
LABELS = torch.tensor([[IGNORED, 6, 7, 8], [9, IGNORED, IGNORED, 12], [IGNORED, 14, IGNORED, 16]])


def granite() -> PreTrainedModel:
    """A model that divides its logits, after its output layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=64, num_key_value_heads=2, logits_scaling=4.0, **sizes)
    return GraniteForCausalLM(config).eval()


def with_bias() -> PreTrainedModel:
    model = make_model()
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size), requires_grad=False)
    return model


def slopes(model: PreTrainedModel, of: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities, and what a weighted sum of them asks of an adapter."""
    bank = inject(model, AdapterSpec("lora", 2, targets="all-linear"), num_slots=1)
    with torch.no_grad():
        bank.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    found = of(model, {"input_ids": IDS}, TargetTokens.of(LABELS))
    (found * torch.linspace(0.5, 2, len(found))).sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("make", [make_model, with_bias, granite])
@pytest.mark.parametrize("piece", [1, 1000])
def test_both_ways_agree(make: Callable[[], PreTrainedModel], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PIECE", piece)
    monkeypatch.setattr(module, "PIECE_BYTES", 0)
    found, expected = slopes(make(), target_logprobs), slopes(make(), plain_logprobs)
    torch.testing.assert_close(found, expected)
    assert expected[1].abs().max() > 0


def test_no_logits_are_kept_where_the_model_gives_them_as_made() -> None:
    model, made = make_model(), []
    model.requires_grad_(False)
    model.lm_head.register_forward_hook(lambda layer, given, out: made.append(out))
    with torch.no_grad():
        target_logprobs(model, {"input_ids": IDS}, TargetTokens.of(LABELS))
    assert made[0].stride() == (0, 0) and "forward" not in vars(model.lm_head)


def test_a_model_that_scales_its_logits_shows_it_once() -> None:
    model, calls = granite().requires_grad_(False), []
    model.lm_head.register_forward_hook(lambda layer, given, out: calls.append(out.stride()))
    for _ in range(2):
        target_logprobs(model, {"input_ids": IDS}, TargetTokens.of(LABELS))
    assert [0 in strides for strides in calls] == [True, False, False]


def test_an_output_layer_that_trains_is_left_alone() -> None:
    model = make_model()
    model.lm_head.weight.requires_grad_()
    target_logprobs(model, {"input_ids": IDS}, TargetTokens.of(LABELS)).sum().backward()
    assert model.lm_head.weight.grad is not None
