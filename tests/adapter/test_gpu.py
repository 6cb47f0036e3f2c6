"""The core on a CUDA device: the same numbers as on the CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.basis import draw_basis
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.merge import Switch
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import checkpoint_context, route
from polyvera.adapter.spec import AdapterSpec, BasisKey

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every = pytest.mark.parametrize("name", METHODS)


def logits(model: nn.Module, ids: Tensor, slots: object) -> Tensor:
    with route(slots):
        return model(ids).logits


def adapted(model: nn.Module, name: str, scramble, slots: int = 3) -> nn.Module:
    scramble(inject(model, AdapterSpec(name, rank=4, targets="all-linear"), slots))
    return model


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def test_the_basis_has_the_same_bits_on_the_device() -> None:
    basis = draw_basis(BasisKey("kaiming_uniform", 0, 16, 40, 56))
    A, B = basis.to(torch.device("cuda"), torch.float32)
    assert torch.equal(A.cpu(), basis.A) and torch.equal(B.cpu(), basis.B)


@every
def test_a_model_moved_to_the_device_computes_the_same(
    small_llama: nn.Module, ids: Tensor, scramble, name: str
) -> None:
    cpu = adapted(small_llama, name, scramble)
    gpu = copy.deepcopy(cpu).cuda()
    for slots in (2, [2, 0, 3, 1]):
        a, b = logits(cpu, ids, slots), logits(gpu, ids.cuda(), slots)
        assert torch.allclose(a, b.cpu(), atol=1e-4)
        a.square().sum().backward()
        b.square().sum().backward()
        truth, found = gradients(cpu), gradients(gpu)
        assert (found - truth).norm() < 1e-4 * truth.norm()


@every
def test_a_mixed_batch_equals_one_at_a_time_in_bf16(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    model = adapted(small_llama.cuda().bfloat16(), name, scramble)
    with torch.no_grad():
        bare = logits(eject(copy.deepcopy(model)), ids.cuda(), 0)
        mixed = logits(model, ids.cuda(), [2, 0, 3, 1])
        assert torch.equal(mixed[1], bare[1])
        for row, slot in ((0, 2), (2, 3), (3, 1)):
            assert torch.allclose(mixed[row], logits(model, ids.cuda(), slot)[row], atol=0.05)


@every
def test_checkpoints_recompute_on_their_route_in_the_backward_thread(
    small_llama: nn.Module, ids: Tensor, scramble, name
) -> None:
    model = adapted(small_llama.cuda(), name, scramble).train()
    embeddings = model.get_input_embeddings()(ids.cuda()).requires_grad_()

    def backward() -> Tensor:
        with route([1, 2, 3, 1]):
            out = model(inputs_embeds=embeddings).logits.square().sum()
        out.backward()
        return gradients(model)

    plain = backward()
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_context})
    assert (backward() - plain).norm() < 1e-5 * plain.norm()


@every
def test_autocast_trains(small_llama: nn.Module, ids: Tensor, scramble, name: str) -> None:
    model = adapted(small_llama.cuda(), name, scramble, 1)
    with torch.autocast("cuda", torch.bfloat16):
        out = logits(model, ids.cuda(), 1)
        out.float().square().mean().backward()
    assert gradients(model).isfinite().all()


@every
def test_switching_is_exact_on_the_device(small_llama: nn.Module, scramble, name: str) -> None:
    spec = AdapterSpec(name, rank=3)
    bank = inject(small_llama, spec)
    scramble(bank)
    adapter = extract(bank, 1, small_llama)
    model = eject(small_llama).cuda().bfloat16()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    switch = Switch(model)
    for _ in range(20):
        switch.to(adapter, check_base=False)
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    switch.restore()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    load(model, adapter, check_base=False)
