"""The core on a CUDA device, in every dtype; what needs no CUDA runs on the CPU too, so that a slip shows there."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.basis import draw_basis
from polyvera.adapter.equation import kernels
from polyvera.adapter.inject import banks_of, eject, extract, inject, load
from polyvera.adapter.merge import Switch
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import Route, checkpoint_context, route
from polyvera.adapter.spec import AdapterSpec, BasisKey

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])
everywhere = pytest.mark.parametrize("device", ["cpu", CUDA])
on_cuda = pytest.mark.parametrize("device", [CUDA])
every = pytest.mark.parametrize("name", METHODS)
# (base dtype, TF32): the relative error, in norm, of outputs and gradients against the same weights in float64 on the
# CPU. TF32 keeps 10 bits of a factor, as fp16 does; bf16 keeps 7. A gradient goes through about 30 roundings.
PRECISIONS = {
    (torch.float32, False): 1e-4,
    (torch.float32, True): 1e-2,
    (torch.float16, False): 2e-2,
    (torch.bfloat16, False): 1e-1,
}
each_precision = pytest.mark.parametrize(("dtype", "tf32"), PRECISIONS, ids=lambda x: str(x).removeprefix("torch."))
MIXED = [2, 0, 3, 1]


@pytest.fixture
def tf32_as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def logits(model: nn.Module, ids: Tensor, slots: object) -> Tensor:
    with route(slots):
        return model(ids).logits


def adapted(
    model: nn.Module, name: str, scramble, slots: int = 3, product_dtype: torch.dtype | None = None
) -> nn.Module:
    spec = AdapterSpec(name, rank=4, targets="all-linear")
    scramble(inject(model, spec, slots, product_dtype=product_dtype), size=0.05)  # of a whole ΔW more is another model
    return model


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def error(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    return float((found - truth).norm() / truth.norm())


def routes(device: str) -> dict[str, object]:
    return {"one": 2, "mixed": MIXED, "device": Route.on_device(torch.tensor(MIXED, device=device))}


def trained(model: nn.Module, scramble, specs: list[AdapterSpec]) -> list[Adapter]:
    """An adapter of each spec, all different; the model is bare again."""
    found = []
    for seed, spec in enumerate(specs):
        bank = inject(model, spec)
        scramble(bank, seed)
        found.append(extract(bank, bank.first))
        eject(model)
    return found


@on_cuda
def test_the_basis_has_the_same_bits_on_the_device(device: str) -> None:
    basis = draw_basis(BasisKey("kaiming_uniform", 0, 16, 40, 56))
    A, B = basis.to(torch.device(device), torch.float32)
    assert torch.equal(A.cpu(), basis.A) and torch.equal(B.cpu(), basis.B)


@on_cuda
def test_the_kernels_are_there(device: str) -> None:
    assert kernels() is not None, "Triton is not installed: every timing would be of the plain operations"


@everywhere
@every
@each_precision
def test_outputs_and_gradients_are_those_of_float64(
    small_llama: nn.Module, ids: Tensor, scramble, tf32_as_it_was, device: str, name: str, dtype, tf32: bool
) -> None:
    """Every law of the equation at once: one adapter, a mixed batch, and a route that stays on the device."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    model = adapted(small_llama.to(dtype), name, scramble, product_dtype=dtype if device == "cpu" else None)
    exact = copy.deepcopy(model).double()
    for bank in banks_of(exact):
        bank.dtype = torch.float64
        bank.product_dtype = None
    model = model.to(device)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    for kind, slots in routes(device).items():
        truth = logits(exact, ids, MIXED if kind == "device" else slots)
        found = logits(model, ids.to(device), slots)
        weights = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        (truth * weights).sum().backward()
        (found.float() * weights.to(device)).sum().backward()
        assert found.dtype == dtype and error(found, truth) < PRECISIONS[dtype, tf32], kind
        assert error(gradients(model), gradients(exact)) < PRECISIONS[dtype, tf32], kind


@everywhere
@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_mixed_batch_equals_one_at_a_time(
    small_llama: nn.Module, ids: Tensor, scramble, device: str, name: str, dtype: torch.dtype
) -> None:
    model = adapted(small_llama.to(device, dtype), name, scramble)
    ids, tolerance = ids.to(device), PRECISIONS[dtype, False]
    with torch.no_grad():
        bare = logits(eject(copy.deepcopy(model)), ids, 0)
        for kind in ("mixed", "device"):
            mixed = logits(model, ids, routes(device)[kind])
            assert torch.equal(mixed[1], bare[1])
            for row, slot in enumerate(MIXED):
                assert error(mixed[row], logits(model, ids, slot)[row]) < tolerance


@everywhere
@every
def test_checkpoints_recompute_on_their_route_in_the_backward_thread(
    small_llama: nn.Module, ids: Tensor, scramble, device: str, name: str
) -> None:
    model = adapted(small_llama.to(device), name, scramble).train()
    embeddings = model.get_input_embeddings()(ids.to(device)).detach().requires_grad_()

    def backward(slots: object) -> Tensor:
        with route(slots):
            out = model(inputs_embeds=embeddings).logits.square().sum()
        out.backward()
        return gradients(model)

    plain = {kind: backward(slots) for kind, slots in routes(device).items()}
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_context})
    for kind, slots in routes(device).items():
        assert error(backward(slots), plain[kind]) < 1e-5, kind


@everywhere
@every
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_trains_near_fp32(small_llama: nn.Module, ids: Tensor, scramble, device: str, name: str, base) -> None:
    model = adapted(small_llama.to(base).to(device), name, scramble)
    exact = copy.deepcopy(model).float()
    for kind, slots in routes(device).items():
        logits(exact, ids.to(device), slots).square().mean().backward()
        with torch.autocast(device, torch.bfloat16):
            out = logits(model, ids.to(device), slots)
        out.float().square().mean().backward()
        assert error(gradients(model), gradients(exact)) < 0.2, kind


@everywhere
@every
def test_switching_is_exact_on_the_device(small_llama: nn.Module, scramble, device: str, name: str) -> None:
    (adapter,) = trained(small_llama, scramble, [AdapterSpec(name, rank=3)])
    model = small_llama.to(device).bfloat16()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    switch = Switch(model)
    for _ in range(5):
        switch.to(adapter, check_base=False)
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    switch.restore()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    load(model, adapter, check_base=False)


# --- steps that the host never waits for -----------------------------------------------------------------------------


class Part(nn.Module):
    """Adapted layers without the rest of a model, of which this says nothing: an MLP and a projection."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        block = model.model.layers[0]
        self.mlp, self.q_proj = block.mlp, block.self_attn.q_proj

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, ..., 32) -> the same."""
        return self.q_proj(x + self.mlp(x))


def inputs(device: str, dtype: torch.dtype, rows: int = 4, tokens: int = 3) -> Tensor:
    return torch.randn(rows, tokens, 32, generator=torch.Generator().manual_seed(3)).to(device, dtype)


@on_cuda
@every
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_host_waits_for_nothing_in_a_step(
    small_llama: nn.Module, scramble, device: str, name: str, magnitude: bool, dtype: torch.dtype
) -> None:
    part = Part(small_llama.to(device, dtype))
    scramble(inject(part, AdapterSpec(name, rank=4, targets="all-linear", magnitude=magnitude), 3))
    x = inputs(device, dtype).requires_grad_()

    def step(slots: object) -> None:
        with route(slots):
            out = part(x)
        out.float().square().sum().backward()

    for kind in routes(device):
        step(routes(device)[kind])  # compiles the kernels, copies the basis
        slots = routes(device)[kind]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(slots)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_graph_replays_with_other_slots(small_llama: nn.Module, scramble, device: str, dtype) -> None:
    """Banks of all methods in one model, an adapter a row, one of them exchanged between replays."""
    part = Part(small_llama.to(device, dtype))
    specs = [AdapterSpec(name, rank=4, targets="all-linear") for name in METHODS]
    adapters = trained(part, scramble, [spec for spec in specs for _ in range(2)])
    numbers = load(part, adapters, check_base=False)
    x, slots = inputs(device, dtype, rows=6, tokens=1), torch.zeros(6, dtype=torch.long, device=device)
    chosen = Route.on_device(slots)

    def forward() -> Tensor:
        with torch.no_grad(), route(chosen):
            return part(x)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward()
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        asked = [
            numbers[i] if i < len(numbers) else 0 for i in torch.randint(0, len(numbers) + 2, (6,), generator=draw)
        ]
        slots.copy_(torch.tensor(asked, device=device))
        for first, bank in zip(range(0, len(numbers), 2), banks_of(part), strict=True):
            bank.put(numbers[first], adapters[first + int(torch.randint(0, 2, (), generator=draw))])
        graph.replay()
        with torch.no_grad(), route(asked):
            expected = part(x)
        assert error(out, expected) < PRECISIONS[dtype, False]
        with torch.no_grad(), route(0):
            untouched = part(x)
        for row, slot in enumerate(asked):
            assert slot or error(out[row], untouched[row]) < PRECISIONS[dtype, False]


@everywhere
@every
def test_a_compiled_part_serves_every_route(small_llama: nn.Module, scramble, device: str, name: str) -> None:
    torch._dynamo.reset()
    part = Part(small_llama.to(device))
    scramble(inject(part, AdapterSpec(name, rank=4, targets="all-linear"), 3))
    x = inputs(device, torch.float32)
    compiled = torch.compile(part, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    for slots in routes(device).values():
        with route(slots):
            plain, found = part(x), compiled(x)
        plain.square().sum().backward()
        truth = gradients(part)
        found.square().sum().backward()
        assert error(found, plain) < 1e-4 and error(gradients(part), truth) < 1e-3
