"""default_lr: the learning rate at which Adam's first step changes W as much as a method's own rate does. No torch.

Adam's first step moves each number that has a gradient by the learning rate η, up or down. One letter of each row
starts at 0, so that the others have no gradient yet, and ΔW after that step is the product with ±η in its place. With
s the scaling, and signs that do not depend on the other numbers, an element of ΔW has the root mean square

    B is 0 (LoRA):    s η √r ‖A‖              = η s √(r/3) / √I    for A uniform within ±1/√I
    d is 0 (AdaLoRA): s η √r ‖A‖ ‖B‖
    b is 0 (VeRA):      η √r ‖A‖ ‖B‖ d_init   = η 2 d_init / √I    for the kaiming basis, at any rank
    C is 0 (LoRA-XS):   η r ‖A‖ ‖B‖           = η 2 √r / √I        for a basis of kaiming's size
    A is 0 (dense):     η √r ‖B‖              = η                  for B the identity, at any rank

where ‖·‖ is the root mean square of an element. W's own is near 1/√I in trained models, so the width I cancels: what
is left is `reach`, the relative change of W for each unit of the rate. The table's rates, which were measured, come out
alike by it: 6e-3 · √(8/3) = 0.0098 for LoRA of rank 8, 6e-2 · 2 · 0.1 = 0.012 for VeRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt
from types import MappingProxyType

from polyvera.adapter.method import BASIS, D_INIT, IDENTITY, KAIMING, NORMAL, ONES, OWN_BASES, ROW_NORM, SCALE, ZEROS
from polyvera.adapter.spec import AdapterSpec

WIDTH = 768  # where an init does not follow the width of its layer
KAIMING_BASIS = 2.0  # √I ‖B A‖: the gain is √2 twice, and B has 1/√r

# √I ‖B A‖ for each unit of rank, by the init of a basis that is not kaiming's: a product of mean 0.05² for [0, 0.1].
BASES_BY_RANK: Mapping[str, float] = MappingProxyType({"uniform": 0.05**2 * sqrt(WIDTH)})

# What kaiming divides by the root of: the columns of a letter, those of A counted as √I.
COLUMNS: Mapping[str, Callable[[AdapterSpec], float]] = MappingProxyType(
    {"A": lambda spec: 1.0, "B": lambda spec: float(_rank(spec))}
)
# How large the numbers of a letter are at the start by its init, those of A times √I; 1 for what moves by the rate.
SIZES: Mapping[str, Callable[[AdapterSpec, str], float]] = MappingProxyType(
    {
        ZEROS: lambda spec, letter: {"C": sqrt(_rank(spec)), "A": sqrt(WIDTH)}.get(letter, 1.0),
        **dict.fromkeys((ONES, ROW_NORM), lambda spec, letter: 1.0),
        IDENTITY: lambda spec, letter: 1 / sqrt(_rank(spec)),
        D_INIT: lambda spec, letter: abs(spec.d_init),
        KAIMING: lambda spec, letter: 1 / sqrt(3 * COLUMNS[letter](spec)),
        NORMAL: lambda spec, letter: sqrt(0.02**2 * sqrt(WIDTH)),
        SCALE: lambda spec, letter: abs(spec.scale_of("")[0] / spec.scale_of("")[1]),
        **dict.fromkeys((BASIS, *OWN_BASES), lambda spec, letter: sqrt(_of_basis(spec) / sqrt(_rank(spec)))),
    }
)


def default_lr(spec: AdapterSpec) -> float:
    """The rate of the spec's method, scaled so that rate · reach is what it is at the method's own rank and d_init.

    To six digits, so that it can be written down and given again.
    """
    own = AdapterSpec(spec.method)
    return float(f"{spec.row.lr * reach(own) / (reach(spec) or reach(own)):.6g}")


def reach(spec: AdapterSpec) -> float:
    """The relative change of W in Adam's first step, for each unit of the learning rate."""
    return sqrt(_rank(spec)) * prod(SIZES[factor.init](spec, letter) for letter, factor in spec.row.factors.items())


def _rank(spec: AdapterSpec) -> int:
    return spec.common_rank or WIDTH


def _of_basis(spec: AdapterSpec) -> float:
    init = spec.basis_init or ""
    return _rank(spec) * BASES_BY_RANK[init] if init in BASES_BY_RANK else KAIMING_BASIS
