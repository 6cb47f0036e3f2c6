"""What an adapter costs, by arithmetic on a layout: numbers, bytes on disk and in memory, cards that can train it.

The layout is the one that a bank allocates and a file holds, so a plan and what comes of it cannot differ. Bytes are
those of tensors: a file's header (some KB) and a step's activations come on top. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

from polyvera.adapter.layout import Entry, Layout, Shape, Widths, layout_of
from polyvera.adapter.method import IDENTITY, METHODS, WAVES, factor_shape
from polyvera.adapter.spec import DTYPES, GIVEN, AdapterSpec
from polyvera.errors import SpecError, did_you_mean

Shapes = Mapping[str, Widths]
NO_HEAD: Mapping[str, Shape] = MappingProxyType({})

NUMBER_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
# Bits of a stored number, and the bytes of the scale that each layer's tensor has beside its numbers.
STORED_BITS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"float32": (32, 0), "bfloat16": (16, 0), "int8": (8, 4), "int4": (4, 2), "int3": (3, 2)}
)
STORED = tuple(STORED_BITS)
FP32 = NUMBER_BYTES["float32"]
ADAM_BYTES = 4 * FP32  # the weight, its gradient and Adam's two moments
GIB = 2**30
FULL = "full fine-tuning"

# Cards by the size in their name, in GB of 10^9 bytes, which each has at least.
GB = 10**9
CARDS: Mapping[str, int] = MappingProxyType(
    {
        "RTX 4090 24 GB": 24 * GB,
        "RTX 5090 32 GB": 32 * GB,
        "L40S 48 GB": 48 * GB,
        "A100 80 GB": 80 * GB,
        "H100 80 GB": 80 * GB,
        "H200 141 GB": 141 * GB,
        "B200 180 GB": 180 * GB,
    }
)
# The share of a card that is left for activations, the driver and an autocast's copy of the basis.
HEADROOM = 0.2


@dataclass(frozen=True, slots=True)
class Cost:
    """What one adapter costs; every count and every `*_bytes` is exact, in numbers and in bytes.

    method, rank: the row, and its rank (None for full fine-tuning). stored: the dtype of the stored numbers.
    num_params, stored_bytes: the head included; num_head_params, head_bytes: the head's share of them. num_slot_params:
    numbers in a slot, more than are trained where a hash makes them.
    slot_bytes: one slot of a bank, fp32; for full fine-tuning a whole copy in the base's dtype.
    basis_bytes: the one shared frozen pair, fp32. frozen_bytes: the frozen matrices that layers have of their own.
    constant_bytes: what a magnitude on a frozen A keeps of W and A, fp32. base_bytes: the frozen base weights.
    """

    method: str
    rank: int | None
    num_params: int
    num_head_params: int
    num_slot_params: int
    stored: str
    stored_bytes: int
    head_bytes: int
    slot_bytes: int
    basis_bytes: int
    frozen_bytes: int
    constant_bytes: int
    base_bytes: int

    @property
    def num_adapter_params(self) -> int:
        """Trained numbers without the head."""
        return self.num_params - self.num_head_params

    @property
    def adapter_bytes(self) -> int:
        """Stored bytes without the head."""
        return self.stored_bytes - self.head_bytes

    @property
    def adapters_per_gib(self) -> int:
        """Whole adapters, their heads included, in 2^30 stored bytes."""
        return GIB // self.stored_bytes

    @property
    def training_bytes(self) -> int:
        """Memory to train one with Adam in fp32, activations not counted."""
        return self.fleet_bytes(1)

    def fleet_bytes(self, num_slots: int) -> int:
        """Memory to train so many at a time in one bank, activations not counted."""
        kept = self.basis_bytes + self.frozen_bytes + self.constant_bytes
        return self.base_bytes + ADAM_BYTES * self.num_slot_params * num_slots + kept

    @property
    def fits(self) -> dict[str, bool]:
        """For each card, whether it trains this and keeps HEADROOM of its memory free."""
        return {card: self.fits_in(size) for card, size in CARDS.items()}

    def fits_in(self, num_bytes: int) -> bool:
        """Whether a card of so many bytes trains this and keeps HEADROOM of them free."""
        return self.training_bytes <= num_bytes * (1 - HEADROOM)


def slots_within(num_bytes: int, num_slot_params: int) -> int:
    """How many slots of so many numbers, at least 1, train in so many bytes; the base comes on top."""
    return max(1, num_bytes // (ADAM_BYTES * num_slot_params))


def cost(
    spec: AdapterSpec,
    shapes: Shapes,
    num_base_params: int,
    *,
    head: Mapping[str, Shape] = NO_HEAD,
    base_dtype: str = "bfloat16",
    stored: str = "float32",
) -> Cost:
    """What one adapter costs: parameters, bytes on disk and in memory, exactly.

    spec: the method, rank and every other choice.
    shapes: the widths of each adapted layer by name, as model_shapes().sites has them.
    num_base_params: parameters of the base model.
    head: the shape of each tensor of a head by full name.
    base_dtype: of the frozen base in training.
    stored: of the adapter's file: 'float32', 'bfloat16', 'int8', 'int4' or 'int3'. A basis that no key draws is stored
        in fp32.

    Raises SpecError for an unknown dtype or a head without shapes, LayoutError as layout_of().
    """
    base_bytes = _base_bytes(num_base_params, base_dtype)
    _check_dtype("stored", stored, STORED)
    _check_head(spec, head)
    layout = layout_of(spec, shapes, head)
    entries = [entry for stack in layout.stacks for entry in stack.entries]
    basis_bytes = 0 if layout.basis is None else FP32 * layout.basis.num_params
    carried = basis_bytes if spec.init == GIVEN else 0
    return Cost(
        method=spec.method,
        rank=spec.common_rank or layout.max_rank,
        num_params=layout.num_params,
        num_head_params=layout.num_head_params,
        num_slot_params=layout.expanded.num_params,
        stored=stored,
        stored_bytes=_stored_bytes(entries, stored) + carried,
        head_bytes=_stored_bytes((e for e in entries if not e.letter), stored),
        slot_bytes=FP32 * layout.expanded.num_params,
        basis_bytes=basis_bytes,
        frozen_bytes=FP32 * _num_drawn(layout),
        constant_bytes=FP32 * _num_constants(layout),
        base_bytes=base_bytes,
    )


def full_cost(num_base_params: int, *, head: Mapping[str, Shape] = NO_HEAD, base_dtype: str = "bfloat16") -> Cost:
    """Full fine-tuning, the baseline: Adam's 16 bytes for every parameter, a whole copy in base_dtype stored.

    head: counted among num_base_params, as in the model it is part of. Raises SpecError for an unknown dtype.
    """
    whole = _base_bytes(num_base_params, base_dtype)
    num_head_params = sum(prod(shape) for shape in head.values())
    return Cost(
        method=FULL,
        rank=None,
        num_params=num_base_params,
        num_head_params=num_head_params,
        num_slot_params=num_base_params,
        stored=base_dtype,
        stored_bytes=whole,
        head_bytes=NUMBER_BYTES[base_dtype] * num_head_params,
        slot_bytes=whole,
        basis_bytes=0,
        frozen_bytes=0,
        constant_bytes=0,
        base_bytes=0,
    )


def compare(
    shapes: Shapes,
    num_base_params: int,
    *,
    rank: int | None = None,
    head: Mapping[str, Shape] = NO_HEAD,
    base_dtype: str = "bfloat16",
    stored: str = "float32",
) -> tuple[Cost, ...]:
    """The cost of every method of the table on the same layers, then of full fine-tuning.

    shapes, num_base_params, head, base_dtype, stored: as cost() takes them. rank: None takes each method's own; of
    singular vectors no more than the narrowest layer has, and no such method where a layer is a stack of experts.
    Raises as cost().
    """
    most = min((width for pair in shapes.values() for width in pair[:2]), default=1)
    has_experts = any(len(pair) > 2 for pair in shapes.values())
    several = [AdapterSpec(method=n, rank=rank) for n, row in METHODS.items() if not (has_experts and row.reads_base)]
    specs = [replace(s, rank=min(s.common_rank, most)) if s.row.reads_base else s for s in several]
    rows = [cost(s, shapes, num_base_params, head=head, base_dtype=base_dtype, stored=stored) for s in specs]
    return (*rows, full_cost(num_base_params, head=head, base_dtype=base_dtype))


def to_dict(cost: Cost) -> dict[str, Any]:
    """All figures of a cost as plain JSON values, the derived ones too."""
    derived = ("num_adapter_params", "adapter_bytes", "adapters_per_gib", "training_bytes", "fits")
    return {**asdict(cost), **{name: getattr(cost, name) for name in derived}}


def plan_rows(costs: Iterable[Cost]) -> list[dict[str, str]]:
    """One row a cost, as text by column; the head has its columns where any cost has a head."""
    several = list(costs)
    with_head = any(cost.num_head_params for cost in several)
    return [_row(cost, with_head) for cost in several]


def _row(cost: Cost, with_head: bool) -> dict[str, str]:
    head = {"of it head": f"{cost.num_head_params:,}", "stored without head": bytes_text(cost.adapter_bytes)}
    return {
        "method": cost.method,
        "rank": "" if cost.rank is None else str(cost.rank),
        "trained": f"{cost.num_params:,}",
        **(head if with_head else {}),
        "stored": f"{bytes_text(cost.stored_bytes)} {cost.stored}",
        "per GiB": f"{cost.adapters_per_gib:,}",
        "slot": bytes_text(cost.slot_bytes),
        "basis": bytes_text(cost.basis_bytes),
        "training": bytes_text(cost.training_bytes),
        "trains on": _smallest_card(cost),
    }


def _smallest_card(cost: Cost) -> str:
    return next((card for card, fits in cost.fits.items() if fits), "no one card listed")


def bytes_text(num_bytes: int) -> str:
    """Three digits or more in binary units: 73,824 -> '72.1 KiB'."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1023.5:
            break
        size, unit = size / 1024, larger
    places = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:,.{places}f} {unit}"


def _stored_bytes(entries: Iterable[Entry], stored: str) -> int:
    bits, scale_bytes = STORED_BITS[stored]
    return sum(-(-bits * entry.size // 8) + scale_bytes for entry in entries)


def _num_drawn(layout: Layout) -> int:
    """Numbers of the frozen matrices that layers have of their own; layers as wide share their waves and identities."""
    found = {
        (x, shape if layout.method.factors[x].init in (*WAVES, IDENTITY) else site.name): prod(shape)
        for site in layout.sites
        for x in layout.method.made
        for shape in [factor_shape(x, site.rank, *site.widths)]
    }
    return sum(found.values())


def _num_constants(layout: Layout) -> int:
    """Numbers of W Aᵀ (out, rank), A Aᵀ (rank, rank) and ‖W‖² (out,), kept where m is there and A is frozen."""
    factors = layout.method.factors
    if "m" not in factors or factors["A"].trained:
        return 0
    return sum((s.out_features * s.rank + s.out_features) * (s.num_experts or 1) + s.rank**2 for s in layout.sites)


def _base_bytes(num_base_params: int, base_dtype: str) -> int:
    _check_dtype("base_dtype", base_dtype, DTYPES)
    if num_base_params < 1:
        raise SpecError(f"num_base_params={num_base_params} must be at least 1; model_shapes() counts it")
    return NUMBER_BYTES[base_dtype] * num_base_params


def _check_dtype(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise SpecError(f"{option}={given!r} must be one of: {', '.join(known)}{did_you_mean(given, known)}")


def _check_head(spec: AdapterSpec, head: Mapping[str, Shape]) -> None:
    for name in spec.head if spec.frozen_head is None else ():
        if not any(key.startswith(f"{name}.") for key in head):
            raise SpecError(
                f"the spec trains the head {name!r}, and head= has no shape under {name}.; pass the shapes of its "
                f"tensors by full name, as model_shapes() gives them"
            )
