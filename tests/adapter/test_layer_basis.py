import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from polyvera.adapter.inject import eject, extract, inject, load, with_base
from polyvera.adapter.layer_basis import directions, waves
from polyvera.adapter.method import DCT, METHODS, SVD, WAVES
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import BasisError, LayoutError

READING = next(name for name, row in METHODS.items() if row.reads_base)


@pytest.mark.parametrize("init", WAVES)
@pytest.mark.parametrize("width", [15, 16])
def test_waves_are_a_basis_at_right_angles_in_blocks(init: str, width: int) -> None:
    A, B = waves(init, 0, "A", 2 * width + 3, width).double(), waves(init, 0, "B", 2 * width + 3, width).double()
    for block in A.split(width):
        assert torch.allclose(block @ block.T, 2 * torch.eye(len(block), dtype=torch.float64), atol=1e-5)
    gram = B[:, :width].T @ B[:, :width]
    assert torch.allclose(gram, gram[0, 0] * torch.eye(width, dtype=torch.float64), atol=1e-5)
    assert waves(init, 0, "A", 3, width) is waves(init, 0, "A", 3, width)
    assert not torch.equal(waves(init, 1, "A", width, width), waves(init, 0, "A", width, width))


def test_a_wave_is_what_it_is_called() -> None:
    dct = nn.functional.normalize(waves(DCT, 0, "A", 8, 8), dim=1)
    j = torch.arange(8) + 0.5
    wanted = nn.functional.normalize(torch.stack([torch.cos(torch.pi * k * j / 8) for k in range(8)]), dim=1)
    assert torch.allclose((dct @ wanted.T).abs().max(1).values, torch.ones(8), atol=1e-5)


PRINT = (
    "from polyvera.adapter.layer_basis import waves; import hashlib;"
    "print(*(hashlib.sha256(waves(init, 3, x, 40, 100).numpy().tobytes()).hexdigest() for init in ('fourier', 'dct')"
    " for x in 'AB'))"
)


def test_the_bits_of_waves_do_not_depend_on_the_processor() -> None:
    printed = []
    for variables in ({}, {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX"}):
        command = [sys.executable, "-c", PRINT]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert printed[0] == printed[1]


def test_directions_are_the_largest_of_the_weight_and_alike_in_bf16() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 16)
    layer.weight.data = layer.weight.data.bfloat16().float()
    found = directions(layer, 5)
    U, sigma, V = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    best = (U[:, :5] * sigma[:5]) @ V[:5]
    product = (found["B"] @ found["A"]).double()
    assert torch.allclose(product / product.norm(), best / best.norm(), atol=1e-6)
    assert found["A"].square().sum(1).mean() == pytest.approx(2.0) and found["B"].square().mean() == pytest.approx(
        2 / 5
    )
    again = directions(copy.deepcopy(layer).bfloat16(), 5)
    assert all(torch.allclose(found[x], again[x], atol=1e-6) for x in "AB")
    fewer = directions(layer, 2)
    assert torch.equal(fewer["A"], found["A"][:2])


def test_directions_follow_a_weight_that_changes() -> None:
    layer = nn.Linear(6, 6)
    before = directions(layer, 2)["A"]
    with torch.no_grad():
        layer.weight.add_(torch.randn(6, 6))
    assert not torch.equal(directions(layer, 2)["A"], before)


@pytest.mark.parametrize("init", [SVD, *WAVES])
@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.init is not None])
def test_any_row_runs_on_a_basis_of_each_layer(small_llama: nn.Module, ids, scramble, name: str, init: str) -> None:
    bank = inject(small_llama, AdapterSpec(name, rank=3, init=init, targets="all-linear"))
    scramble(bank)
    with torch.no_grad():
        trained = small_llama(ids).logits
    adapter = extract(bank, bank.first, small_llama)
    eject(small_llama)
    load(small_llama, adapter)
    with torch.no_grad():
        assert torch.allclose(small_llama(ids).logits, trained, atol=1e-5)


def test_a_basis_of_the_base_needs_the_base(small_llama: nn.Module, scramble) -> None:
    bank = inject(small_llama, AdapterSpec(READING, rank=3))
    scramble(bank)
    adapter = extract(bank, bank.first, small_llama)
    site = adapter.layout.sites[0]
    eject(small_llama)
    bare = copy.copy(adapter)
    object.__setattr__(bare, "computed", {})
    with pytest.raises(BasisError, match="singular vectors of the base's own weight"):
        bare.frozen(site)
    computed = with_base(bare, small_llama).frozen(site)
    assert all(torch.allclose(computed[x], t, atol=1e-6) for x, t in adapter.frozen(site).items())
    with pytest.raises(BasisError, match="has none"):
        with_base(bare, small_llama.to("meta"))


def test_a_rank_beyond_the_directions_of_a_weight_is_refused(small_llama: nn.Module) -> None:
    with pytest.raises(LayoutError, match="has 16 singular vectors"):
        inject(small_llama, AdapterSpec(READING, rank=17))
