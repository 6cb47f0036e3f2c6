import math
import os
import subprocess
import sys

import pytest
import torch

from polyvera.adapter.basis import BASES, draw_basis, draw_factor, given_basis
from polyvera.adapter.layer_basis import MAKERS
from polyvera.adapter.method import KAIMING, MADE, OWN_BASES
from polyvera.adapter.spec import BASIS_INITS, BasisKey
from polyvera.errors import BasisError

KEY = BasisKey("kaiming_uniform", 0, 16, 40, 56)


def peft_draw(key: BasisKey) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's own two functions, on their documented inputs."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers  # noqa: F401  (PEFT is there)
    from peft.tuners.vera.model import _kaiming_init

    generator = torch.Generator(device="cpu").manual_seed(key.seed)
    A = _kaiming_init((key.rank, key.in_max), generator=generator)
    return A, _kaiming_init((key.out_max, key.rank), generator=generator)


@pytest.mark.parametrize("seed, rank, in_max, out_max", [(0, 256, 576, 1536), (7, 3, 33, 65), (2**32 - 1, 16, 100, 10)])
def test_the_draw_is_pefts(seed: int, rank: int, in_max: int, out_max: int) -> None:
    pytest.importorskip("peft")
    key = BasisKey("kaiming_uniform", seed, rank, in_max, out_max)
    A, B = peft_draw(key)
    assert torch.equal(draw_basis(key).A, A) and torch.equal(draw_basis(key).B, B)


def test_every_init_has_an_entry_and_a_spec_knows_it() -> None:
    assert (*BASES, *OWN_BASES) == BASIS_INITS and set(MAKERS) == set(MADE)


PRINT = (
    "from polyvera.adapter.basis import BASES, draw_basis; from polyvera.adapter.spec import BasisKey; import torch;"
    "{setup}; print(*(draw_basis(BasisKey(init, 3, 24, 100, 70)).sha256 for init in BASES))"
)


@pytest.mark.parametrize(
    ("variable", "value", "setup"),
    [
        ("ATEN_CPU_CAPABILITY", "default", "torch.set_num_threads(1)"),
        (
            "NPY_DISABLE_CPU_FEATURES",
            "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX",
            "torch.set_default_dtype(torch.bfloat16)",
        ),
    ],
)
def test_the_bits_do_not_depend_on_the_processor_or_the_defaults(variable: str, value: str, setup: str) -> None:
    here = [draw_basis(BasisKey(init, 3, 24, 100, 70)).sha256 for init in BASES]
    environment = {**os.environ, variable: value, "OPENBLAS_CORETYPE": "Prescott"}
    command = [sys.executable, "-c", PRINT.format(setup=setup)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == here


@pytest.mark.parametrize("init", BASES)
def test_a_key_is_one_storage_and_another_key_other_bits(init: str) -> None:
    key = BasisKey(init, 1, 8, 20, 12)
    basis = draw_basis(key)
    assert draw_basis(key) is basis
    assert basis.to(torch.device("cpu"), torch.bfloat16)[0] is basis.to(torch.device("cpu"), torch.bfloat16)[0]
    others = [BasisKey(init, 2, 8, 20, 12), BasisKey(init, 1, 8, 21, 12), BasisKey(init, 1, 8, 20, 12, "bfloat16")]
    assert len({basis.sha256, *(draw_basis(other).sha256 for other in others)}) == 4


@pytest.mark.parametrize("init", BASES)
def test_rows_of_A_are_of_kaimings_size(init: str) -> None:
    if init == "uniform":
        pytest.skip("the paper's uniform [0, 0.1] has a size of its own")
    basis = draw_basis(BasisKey(init, 0, 128, 512, 256))
    assert basis.A.square().sum(1).mean().item() == pytest.approx(2.0, rel=0.02)
    assert basis.B.square().mean().item() == pytest.approx(2 / 128, rel=0.02)


def test_orthogonal_rows_are_at_right_angles_even_past_the_width() -> None:
    A = draw_basis(BasisKey("orthogonal", 0, 24, 16, 40)).A.double()
    for block in (A[:16], A[16:]):
        assert torch.allclose(block @ block.T, 2 * torch.eye(len(block), dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(("rank", "width"), [(24, 16), (16, 24)])
def test_a_tight_frame_has_its_shorter_side_orthonormal(rank: int, width: int) -> None:
    A = draw_basis(BasisKey("tight_frame", 0, rank, width, 40)).A.double()
    inner = A @ A.T if rank <= width else A.T @ A
    assert torch.allclose(inner, inner[0, 0] * torch.eye(len(inner), dtype=torch.float64), atol=1e-6)


def test_hadamards_rows_are_at_right_angles_where_no_column_is_cut() -> None:
    basis = draw_basis(BasisKey("hadamard", 0, 24, 64, 40))
    assert torch.allclose(basis.A @ basis.A.T, 2 * torch.eye(24), atol=1e-5)
    assert {abs(x) for x in basis.B.flatten().tolist()} == {float(torch.tensor(2 / 24).sqrt())}


def test_the_basis_dtype_rounds_the_values() -> None:
    exact, rounded = draw_basis(KEY), draw_basis(BasisKey("kaiming_uniform", 0, 16, 40, 56, "bfloat16"))
    assert torch.equal(rounded.A, exact.A.bfloat16().float()) and not torch.equal(rounded.A, exact.A)


def test_a_given_basis_is_named_by_its_digest() -> None:
    drawn = draw_basis(KEY)
    given = given_basis(drawn.A, drawn.B)
    assert given.sha256 == drawn.sha256 == given.key.sha256 and given.key.init == "given"
    with pytest.raises(BasisError, match="must be one of"):
        draw_basis(given.key)


def test_a_layers_own_factor_depends_on_its_name_alone() -> None:
    a = draw_factor(KAIMING, 0, "layers.0.q.A", (4, 9))
    assert torch.equal(a, draw_factor(KAIMING, 0, "layers.0.q.A", (4, 9)))
    assert not torch.equal(a, draw_factor(KAIMING, 0, "layers.1.q.A", (4, 9)))
    assert not torch.equal(a, draw_factor(KAIMING, 1, "layers.0.q.A", (4, 9)))
    assert a.abs().max() <= 1 / math.sqrt(9)
