"""The table: which letters of the one equation each method has, and which of them it trains.

    y = g ⊙ (W x + b ⊙ B C (d ⊙ A x))        g = m / ‖W + ΔW‖ of each row, or 1

Shapes: A (rank, in), d (rank,), C (rank, rank), B (out, rank), b (out,), m (out,). An absent letter is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from polyvera.errors import SpecError, did_you_mean

LETTERS = ("A", "B", "C", "d", "b", "m")


@dataclass(frozen=True, slots=True)
class Factor:
    """One letter of the equation: how it starts, whether it is trained, whether the whole model shares it.

    tied: a trained letter that layers have in common where they differ only in their number (Tied-LoRA, Renduchintala
    2023, for b). single: a trained letter of a layer is one number, (1,), which stands for all of it (SAID, Aghajanyan
    2020, for d beside a trained A).
    """

    init: str
    trained: bool = False
    shared: bool = False
    tied: bool = False
    single: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table. `factors` has no entry for a letter that the method lacks.

    scaling: the rule in SCALINGS that multiplies the delta when b is not a vector. rank: a sensible default, OWN_WIDTH
    for that of each layer. lr: one at that rank, which first_step.default_lr() scales for another spec.
    peft_type, peft_keys: the name and the tensor suffixes of the same row in Hugging Face PEFT.
    """

    name: str
    factors: Mapping[str, Factor]
    source: str
    scaling: str
    rank: int
    lr: float
    peft_type: str
    peft_keys: Mapping[str, str]

    @property
    def trained(self) -> tuple[str, ...]:
        """The trained letters, which are also the stored ones."""
        return tuple(x for x in LETTERS if x in self.factors and self.factors[x].trained)

    @property
    def tied(self) -> tuple[str, ...]:
        """The trained letters that like layers have in common."""
        return tuple(x for x in self.trained if self.factors[x].tied)

    @property
    def hashed(self) -> tuple[str, ...]:
        """The trained letters that a hash can make: those of many numbers that start without the base's own weights."""
        return tuple(x for x in self.trained if self.factors[x].init != ROW_NORM and not self.factors[x].single)

    @property
    def shrinks(self) -> bool:
        """Whether each layer has a trained number for every rank, which can be set to 0."""
        return "d" in self.trained and not self.factors["d"].single

    def rank_within(self, rank: int, out_features: int) -> int:
        """The rank of a layer where the spec's is `rank`: at most one for each output, if B is the identity."""
        return min(rank or out_features, out_features) if self.factors["B"].init == IDENTITY else rank

    def shape(
        self, letter: str, rank: int, in_features: int, out_features: int, num_experts: int = 0
    ) -> tuple[int, ...]:
        """The shape of one of its letters in one layer of that rank: factor_shape(), or (1,) of a single number."""
        if self.factors[letter].single:
            return (num_experts, 1) if num_experts else (1,)
        return factor_shape(letter, rank, in_features, out_features, num_experts)

    @property
    def shares_basis(self) -> bool:
        """Whether A and B are one frozen pair for the whole model."""
        return all(x in self.factors and self.factors[x].shared for x in ("A", "B"))

    @property
    def made(self) -> tuple[str, ...]:
        """The frozen matrices that each layer has of its own, which are made again instead of stored."""
        return tuple(x for x, f in self.factors.items() if f.init in MADE and not (f.trained or f.shared))

    @property
    def draws_by_seed(self) -> bool:
        """Whether a frozen matrix of each layer depends on the seed."""
        return any(self.factors[x].init in DRAWN for x in self.made)

    @property
    def reads_base(self) -> bool:
        """Whether a frozen matrix of each layer is computed from the base's own weights."""
        return any(self.factors[x].init == SVD for x in self.made)

    @property
    def init(self) -> str | None:
        """The basis that its frozen pair is by default, None where it has no pair to choose."""
        if self.shares_basis:
            return KAIMING_UNIFORM
        return self.factors["A"].init if self.factors["A"].init in OWN_BASES else None

    def on_basis(self, init: str | None) -> Method:
        """The same row with its frozen pair of another basis; None is its own."""
        if init is None or init == self.init:
            return self
        pair = Factor(init) if init in OWN_BASES else SHARED
        return replace(self, factors={**self.factors, "A": pair, "B": pair})

    @property
    def takes_alpha(self) -> bool:
        """Whether alpha has a meaning here, that is whether b is a frozen number."""
        return self.scaling != "none"

    def with_magnitude(self) -> Method:
        """The same row with a trained magnitude m (DoRA, Liu 2024), named as it is where it has one already."""
        return self if "m" in self.factors else replace(self, factors={**self.factors, "m": MAGNITUDE})


KAIMING = "kaiming"  # uniform within ±1/√fan_in, which is kaiming uniform at a=√5
NORMAL = "normal"  # N(0, 0.02²)
ZEROS = "zeros"
ONES = "ones"
D_INIT = "d_init"  # the constant spec.d_init
ROW_NORM = "row_norm"  # ‖W‖ of each row
BASIS = "basis"  # the shared pair named by a BasisKey
SCALE = "scale"  # the number that a rule of SCALINGS gives
SVD = "svd"  # directions of the layer's own weight, those of the largest singular values
FOURIER = "fourier"  # waves of whole periods, sines and cosines, of frequencies drawn from the seed
DCT = "dct"  # waves of half periods, cosines (the DCT-II), of frequencies drawn from the seed
WAVES = (FOURIER, DCT)
OWN_BASES = (SVD, *WAVES)  # those of each layer's own widths; A and B are the same for all layers as wide, save svd's
IDENTITY = "identity"  # row i is the unit vector of i modulo the rank, so that the rank may be less than the width
DRAWN = (KAIMING, NORMAL, *WAVES)
MADE = (*DRAWN, SVD, IDENTITY)
KAIMING_UNIFORM = "kaiming_uniform"  # the shared pair that is the default

OWN_WIDTH = 0  # the rank of a row whose letters are as wide as each layer

SHARED = Factor(BASIS, shared=True)
MAGNITUDE = Factor(ROW_NORM, trained=True)
FROZEN_SCALE = Factor(SCALE)
LOW_RANK = {"A": Factor(KAIMING, trained=True), "B": Factor(ZEROS, trained=True), "b": FROZEN_SCALE}
VECTORS = {"A": SHARED, "B": SHARED, "d": Factor(D_INIT, trained=True), "b": Factor(ZEROS, trained=True)}
TIED_B = Factor(ZEROS, trained=True, tied=True)
OWN, GROWN = Factor(KAIMING), Factor(ZEROS, trained=True)
DELTA = {"A": GROWN, "B": Factor(IDENTITY)}
LAYER_SCALE = Factor(ONES, trained=True, single=True)
SVD_PAIR, WAVE_PAIR = ({"A": Factor(init), "B": Factor(init)} for init in (SVD, FOURIER))
TIED, D_ONLY = "after Renduchintala 2023", "after Kopiczko 2023"
RASTA, WAVE_D = "after Bałazy 2024", "after Gao 2024"
DID, SAID = "after Li 2018", "Aghajanyan 2020"
LORA_KEYS = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}
VERA_KEYS = {"d": "vera_lambda_d", "b": "vera_lambda_b"}
ADALORA_KEYS = {"A": "lora_A", "B": "lora_B", "d": "lora_E"}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for row in (
            Method("lora", LOW_RANK, "Hu 2021", "alpha/r", 8, 6e-3, "LORA", LORA_KEYS),
            Method(
                "lora-fa",
                {**LOW_RANK, "A": Factor(KAIMING)},
                "Zhang 2023a",
                "alpha/r",
                8,
                4e-3,
                "LORA",
                LORA_KEYS,
            ),
            Method(
                "adalora",
                {
                    "A": Factor(NORMAL, trained=True),
                    "B": Factor(NORMAL, trained=True),
                    "d": Factor(ZEROS, trained=True),
                    "b": FROZEN_SCALE,
                },
                "Zhang 2023b",
                "alpha,r",
                12,
                5e-3,
                "ADALORA",
                ADALORA_KEYS,
            ),
            Method("dora", {**LOW_RANK, "m": MAGNITUDE}, "Liu 2024", "alpha/r", 8, 6e-3, "LORA", LORA_KEYS),
            Method("vera", VECTORS, "Kopiczko 2023", "none", 256, 6e-2, "VERA", VERA_KEYS),
            Method("vera-tied", {**VECTORS, "b": TIED_B}, TIED, "none", 256, 6e-2, "VERA", VERA_KEYS),
            Method("vera-d", {"A": SHARED, "B": SHARED, "d": GROWN}, D_ONLY, "none", 256, 6e-2, "LORA", LORA_KEYS),
            Method("vera-d-own", {"A": OWN, "B": OWN, "d": GROWN}, D_ONLY, "none", 256, 6e-2, "LORA", LORA_KEYS),
            Method("dvora", {**VECTORS, "m": MAGNITUDE}, "Liu 2024", "none", 256, 6e-2, "LORA", LORA_KEYS),
            Method("lora-xs", {**SVD_PAIR, "C": GROWN}, "Bałazy 2024", "none", 16, 6e-3, "LORA", LORA_KEYS),
            Method("rasta", {"A": SHARED, "B": SHARED, "C": GROWN}, RASTA, "none", 16, 6e-3, "LORA", LORA_KEYS),
            Method("fourier-d", {**WAVE_PAIR, "d": GROWN}, WAVE_D, "none", 256, 6e-2, "LORA", LORA_KEYS),
            Method("dense-delta", DELTA, DID, "none", OWN_WIDTH, 3e-4, "LORA", LORA_KEYS),
            Method("said", {**DELTA, "d": LAYER_SCALE}, SAID, "none", OWN_WIDTH, 3e-4, "LORA", LORA_KEYS),
        )
    }
)

Scale = tuple[float, float]
ONE: Scale = (1.0, 1.0)

# A rule gives (factor, divisor): the delta is multiplied by the one, then divided by the other, two roundings
# where PEFT has two. AdaLoRA's official code divides by r + 1e-5.
SCALINGS: Mapping[str, Callable[[float, int], Scale]] = MappingProxyType(
    {
        "none": lambda alpha, rank: ONE,
        "alpha/r": lambda alpha, rank: (alpha / rank, 1.0) if rank else ONE,
        "alpha/sqrt(r)": lambda alpha, rank: (alpha / rank**0.5, 1.0) if rank else ONE,
        "alpha,r": lambda alpha, rank: (alpha, rank + 1e-5),
    }
)


def method_named(name: str) -> Method:
    """The row of that name. Raises SpecError, with the nearest name, where there is none."""
    if name not in METHODS:
        raise SpecError(f"method={name!r} must be one of: {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def factor_shape(letter: str, rank: int, in_features: int, out_features: int, num_experts: int = 0) -> tuple[int, ...]:
    """The shape of one letter in one layer: A (rank, in), d (rank,), C (rank, rank), B (out, rank), b and m (out,).

    A stack of experts has one of each, (num_experts, ...).
    """
    shapes: dict[str, tuple[int, ...]] = {
        "A": (rank, in_features),
        "B": (out_features, rank),
        "C": (rank, rank),
        "d": (rank,),
        "b": (out_features,),
        "m": (out_features,),
    }
    return (num_experts, *shapes[letter]) if num_experts else shapes[letter]
