"""One kernel for the norms that compute the formula, and no other norm touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from polyvera.model import rms_norm
from polyvera.model.rms_norm import fused_norms

WIDTH = 24
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "FUSED_ON", {"cpu", "cuda"})


class Centred(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


class Grouped(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.unflatten(-1, (2, -1))
        return (x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()).flatten(-2) * self.weight


class Paired(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return super().forward(hidden_states * gate)


@pytest.fixture(params=[LlamaRMSNorm, T5LayerNorm])
def norm(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    made = request.param(WIDTH, 1e-5)
    nn.init.normal_(made.weight, 1.0, 0.5)
    yield made


@each_device
@each_dtype
def test_outputs_and_gradients_are_those_of_the_formula(norm: nn.Module, device: str, dtype: torch.dtype) -> None:
    norm = norm.to(device, dtype)
    x = (3 * torch.randn(5, 7, WIDTH, generator=torch.Generator().manual_seed(1))).to(device, dtype)
    exact = copy.deepcopy(norm).double()
    truth, wide = exact(x.double().requires_grad_()), x.double().requires_grad_()
    exact(wide).square().sum().backward()
    with fused_norms(nn.ModuleList([norm])) as fused:
        assert fused == [norm] and "forward" in vars(norm)
        narrow = x.clone().requires_grad_()
        found = norm(narrow)
        found.square().sum().backward()
    bound = 4 * torch.finfo(dtype).eps
    assert found.dtype == dtype and (found - truth).norm() <= bound * truth.norm()
    assert narrow.grad is not None and wide.grad is not None
    assert (narrow.grad - wide.grad).norm() <= 4 * bound * wide.grad.norm()
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("other", [GemmaRMSNorm, Centred, Grouped, Paired, nn.LayerNorm])
@each_dtype
def test_a_norm_that_computes_something_else_is_left_alone(other: type[nn.Module], dtype: torch.dtype) -> None:
    made = other(WIDTH).to(dtype)
    with fused_norms(nn.ModuleList([made])) as fused:
        assert not fused and "forward" not in vars(made)


def test_a_copy_has_norms_of_its_own(norm: nn.Module) -> None:
    x = torch.randn(2, WIDTH)
    with fused_norms(nn.ModuleList([norm])):
        other = copy.deepcopy(norm)
        with torch.no_grad():
            other.weight.zero_()
        assert not other(x).any() and norm(x).all()


def test_a_mixed_dtype_is_computed_as_before(norm: nn.Module) -> None:
    x = torch.randn(2, WIDTH).bfloat16()
    plain = norm(x)
    with fused_norms(nn.ModuleList([norm])):
        assert torch.equal(norm(x), plain) and norm(x).dtype == plain.dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(x.float()).dtype == torch.float32
