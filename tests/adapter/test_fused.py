"""The kernels beside their naive twins: on a CUDA device, or in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyvera.adapter import equation
from polyvera.adapter.batched import adapt_rows, adapt_rows_naive
from polyvera.adapter.equation import Vectors, adapt, adapt_naive, kernels
from polyvera.adapter.inject import inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.route import Route, route
from polyvera.adapter.spec import AdapterSpec

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
pytest.importorskip("triton")
if IS_INTERPRETED:
    import triton_interpreter  # noqa: F401
needs_device = pytest.mark.skipif(not (IS_INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device")
# The interpreter cuts a number off where a GPU rounds it to bfloat16, so its error is up to one unit of the last place.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# (rows of the batch, tokens a row, in, out, rank): ragged against every block, and a row that is longer than a block
SIZES = [(5, 7, 12, 40, 6), (9, 1, 20, 300, 3), (2, 150, 8, 17, 270), (70, 1, 3, 35, 40), (1, 1, 4, 1, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)
NUM_SLOTS = 4


@pytest.mark.skipif(IS_INTERPRETED, reason="is the process apart")
def test_the_kernels_equal_their_twins_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(equation, "FUSED_ON", {"cpu"})
        monkeypatch.setattr("polyvera.adapter.layer_bank.FUSED_ON", {"cpu"})


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape))).to(DEVICE, dtype)


def near(found: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - truth.double()).norm() <= TOLERANCE[dtype] * truth.double().norm() + 1e-12)


def index_of(rows: int) -> Tensor:
    """Rows of every slot, some of none."""
    return torch.tensor([(2, -1, 0, 3, 2)[i % 5] for i in range(rows)], device=DEVICE)


def leaves(size: tuple[int, ...], dtype: torch.dtype, slots: int) -> dict[str, Tensor]:
    rows, span, _, out, rank = size
    made = {
        "y": draw(rows, span, out, dtype=dtype, seed=1),
        "u": draw(rows, span, rank, dtype=dtype, seed=2),
        # columns of a wider matrix, as in a bank
        "d": draw(slots, rank + 5, seed=3)[:, 2 : rank + 2],
        "b": draw(slots, out + 3, seed=4)[:, :out],
    }
    return {k: v.clone().requires_grad_() if k in "yu" else v.requires_grad_() for k, v in made.items()}


def gradients(out: Tensor, of: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    return dict(zip(of, torch.autograd.grad((out.float() * weights).sum(), list(of.values())), strict=True))


def run(form, size, dtype: torch.dtype, slots: int, *args: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a form of the equation, and the gradients of all that it takes."""
    of = leaves(size, dtype, slots)
    out = form(of["y"], of["u"], of["d"], of["b"], *args)
    return out.detach(), gradients(out, of, draw(*out.shape, seed=9))


def basis(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """B as a slice of a wider basis."""
    return draw(size[3] + 2, size[4] + 1, dtype=dtype, seed=5)[: size[3], : size[4]]


@needs_device
@pytest.mark.gpu
@each_dtype
@each_size
def test_rows_of_several_slots(fused: None, size: tuple[int, ...], dtype: torch.dtype) -> None:
    index = index_of(size[0])

    def form(of):
        return lambda y, u, d, b, B: of(y, u, Vectors(B, d, b, (3.0, 2.0)), index)

    # the twin in fp32, from the same rounded numbers: what rounding alone costs is in the tolerance
    found = run(form(adapt_rows), size, dtype, NUM_SLOTS, basis(size, dtype))
    truth = run(
        lambda y, u, d, b, B: form(adapt_rows_naive)(y.float(), u.float(), d, b, B.float()),
        size,
        dtype,
        NUM_SLOTS,
        basis(size, dtype),
    )
    assert near(found[0], truth[0], dtype)
    for name in truth[1]:
        assert near(found[1][name], truth[1][name], dtype), name
    y = leaves(size, dtype, NUM_SLOTS)["y"]
    assert torch.equal(found[0][index < 0], y[index < 0])


@needs_device
@pytest.mark.gpu
@each_dtype
@each_size
def test_rows_of_one_slot_in_one_product(fused: None, size: tuple[int, ...], dtype: torch.dtype) -> None:
    def form(of, wide: bool):
        def call(y, u, d, b, B):
            y, u, B = (t.float() if wide else t for t in (y, u, B))
            # y is the output of an operation, as a base layer's is, and may be written over
            return of(y * 1.0, u, Vectors(B, d[0], b[0], (3.0, 2.0)), None, *([] if wide else [True]))

        return call

    found = run(form(adapt, False), size, dtype, 1, basis(size, dtype))
    truth = run(form(adapt_naive, True), size, dtype, 1, basis(size, dtype))
    assert near(found[0], truth[0], dtype)
    for name in truth[1]:
        assert near(found[1][name], truth[1][name], dtype), name


@needs_device
@pytest.mark.gpu
@each_dtype
def test_a_gain_and_a_bias_are_applied_by_slot(fused: None, dtype: torch.dtype) -> None:
    size = SIZES[0]
    index, B, bias = index_of(size[0]), basis(size, dtype), draw(size[3], dtype=dtype)
    of = leaves(size, dtype, NUM_SLOTS)
    m, norm = draw(NUM_SLOTS, size[3], seed=7).abs() + 1, draw(NUM_SLOTS, size[3], seed=8).abs() + 1
    v = Vectors(B, of["d"], of["b"], (1.0, 1.0), m, norm)
    wide = Vectors(B.float(), of["d"], of["b"], (1.0, 1.0), m, norm)
    with torch.no_grad():
        found = adapt_rows(of["y"], of["u"], v, index, bias)
        truth = adapt_rows_naive(of["y"].float(), of["u"].float(), wide, index, bias.float())
    assert near(found, truth, dtype) and torch.equal(found[index < 0], of["y"][index < 0])


@needs_device
@pytest.mark.gpu
def test_two_runs_give_the_same_bits(fused: None) -> None:
    size, index = (2, 150, 8, 17, 20), index_of(2)
    form = lambda y, u, d, b, B: adapt_rows(y, u, Vectors(B, d, b), index)  # noqa: E731
    one, two = (run(form, size, torch.float32, NUM_SLOTS, basis(size, torch.float32)) for _ in range(2))
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@needs_device
@pytest.mark.gpu
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_computes_the_same_with_and_without_kernels(
    small_llama: nn.Module, ids: Tensor, scramble, name: str, magnitude: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every method: one adapter, a mixed batch, a route on the device; outputs and gradients."""
    del small_llama.model.layers[1:]
    bank = inject(
        small_llama.to(DEVICE), AdapterSpec(name, rank=4, targets=("q_proj", "down_proj"), magnitude=magnitude), 3
    )
    scramble(bank)
    ids = ids[:, :2].to(DEVICE)
    kinds = {"one": 2, "mixed": [2, 0, 3, 1], "device": Route.on_device(torch.tensor([2, 0, 3, 1], device=DEVICE))}

    def results() -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for kind, slots in kinds.items():
            with route(slots):
                out = small_llama(ids).logits
                out.square().sum().backward()
            grads = torch.cat([p.grad.flatten() for p in small_llama.parameters() if p.grad is not None])
            small_llama.zero_grad()
            with torch.no_grad(), route(slots):
                found[kind] = out.detach(), grads, small_llama(ids).logits
        return found

    truth = {}
    for on in (set(), {DEVICE}):
        monkeypatch.setattr(equation, "FUSED_ON", on)
        monkeypatch.setattr("polyvera.adapter.layer_bank.FUSED_ON", on)
        truth, last = results(), truth
    for kind, parts in truth.items():
        for a, b in zip(parts, last[kind], strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm(), kind


@needs_device
@pytest.mark.gpu
def test_the_kernels_are_those_that_ran(
    fused: None, monkeypatch: pytest.MonkeyPatch, small_llama, ids, scramble
) -> None:
    seen: list[str] = []
    for name in ("scaled_basis", "basis_sums", "scale_rows", "add_rows", "scale_and_sum", "expand_rows"):
        plain = getattr(kernels(), name)
        monkeypatch.setattr(kernels(), name, lambda *a, name=name, plain=plain: seen.append(name) or plain(*a))
    scramble(inject(small_llama.to(DEVICE), AdapterSpec(rank=4, targets=("v_proj",)), 2))
    ids = ids[:, :3].to(DEVICE)
    for slots, expected in (
        (1, {"scaled_basis", "basis_sums"}),
        ([1, 2, 0, 2], {"expand_rows", "scale_rows", "scale_and_sum"}),
    ):
        seen.clear()
        with route(slots):
            small_llama(ids).logits.sum().backward()
        assert set(seen) == expected
