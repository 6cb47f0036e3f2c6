"""Site names folded into patterns: thirty layers are one record, `model.layers.*.self_attn.q_proj` with layers 0-29.

Order is kept. Records that follow each other and have the same text before the `*` are one block, which unfolds layer
by layer, within a layer in the order of the records. Names that no such order gives are written out one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from polyvera.adapter.layout import NUMBER, Site, Widths
from polyvera.errors import FormatError

MAX_SITES = 100_000
MAX_WIDTH = 2**24
MAX_DIGITS = 9
RANGES = r"^\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*$"
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
WIDTHS = ("in", "out", "experts")


class Pattern(BaseModel):
    """One record: a name with `*` for the layer number and the numbers it stands for, or a whole name without."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    layers: Annotated[str, StringConstraints(pattern=RANGES)] | None = None
    in_features: Width = Field(alias="in")
    out_features: Width = Field(alias="out")
    experts: Width | None = None

    @property
    def widths(self) -> Widths:
        """(in_features, out_features), and the number of experts where a layer is a stack of them."""
        both = (self.in_features, self.out_features)
        return both if self.experts is None else (*both, self.experts)

    @property
    def block(self) -> str | None:
        """The text before the `*`, or None for a whole name."""
        return None if self.layers is None else self.name.partition("*")[0]


def fold(sites: Sequence[Site]) -> list[Pattern]:
    """The records of these sites, in their order: the fewest where layers are alike, one a site where they are not."""
    folded = _folded(sites)
    if [(name, p.widths) for name, p in _named(folded)] == [(s.name, s.widths) for s in sites]:
        return folded
    return [_record(s.name, None, s.widths) for s in sites]


def unfold(patterns: Sequence[Pattern]) -> dict[str, Widths]:
    """The widths of every site by name, in order. Raises FormatError for a name that comes twice."""
    found: dict[str, Widths] = {}
    for name, pattern in _named(patterns):
        if name in found:
            raise FormatError(f"its header names the layer {name!r} twice")
        if len(found) == MAX_SITES:
            raise FormatError(f"its header names more than {MAX_SITES} layers")
        found[name] = pattern.widths
    return found


def num_layers(pattern: Pattern) -> int:
    """How many layers a record stands for, without naming them."""
    runs = (run.partition("-") for run in (pattern.layers or "0").split(","))
    return sum(max(0, int(last or first) - int(first) + 1) for first, _, last in runs)


def _named(patterns: Sequence[Pattern]) -> Iterator[tuple[str, Pattern]]:
    for block, records in groupby(patterns, key=lambda p: p.block):
        block_records = list(records)
        yield from ((p.name, p) for p in block_records) if block is None else _by_layer(block_records)


def _folded(sites: Sequence[Site]) -> list[Pattern]:
    """Grouped by block, then by pattern, then by widths, each in the order of its first site."""
    groups: dict[str, dict[str, dict[Widths, list[int]]]] = {}
    for site in sites:
        block, number, rest = _split(site.name)
        name = site.name if number is None else f"{block}*{rest}"
        variants = groups.setdefault(block, {}).setdefault(name, {})
        numbers = variants.setdefault(site.widths, [])
        numbers += [] if number is None else [number]
    return [
        _record(name, _ranges(numbers), widths)
        for names in groups.values()
        for name, variants in names.items()
        for widths, numbers in variants.items()
    ]


def _split(name: str) -> tuple[str, int | None, str]:
    """The text before the first number, the number, the text after it."""
    found = NUMBER.search(name)
    if found is None or len(found.group()) > MAX_DIGITS:
        return name, None, ""
    return name[: found.start()], int(found.group()), name[found.end() :]


def _record(name: str, layers: str | None, widths: Widths) -> Pattern:
    return Pattern.model_validate({"name": name, "layers": layers, **dict(zip(WIDTHS, widths, strict=False))})


def _ranges(numbers: Sequence[int]) -> str | None:
    """`0-3,5,7-8`, or None for no number."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs) or None


def _numbers(layers: str) -> Iterator[int]:
    for run in layers.split(","):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _by_layer(records: list[Pattern]) -> Iterator[tuple[str, Pattern]]:
    layers: dict[int, list[Pattern]] = {}
    pairs = ((number, p) for p in records for number in _numbers(p.layers or ""))
    for number, pattern in islice(pairs, MAX_SITES + 1):  # one more than unfold() takes, so that it refuses
        layers.setdefault(number, []).append(pattern)
    for number in sorted(layers):
        yield from ((p.name.replace("*", str(number), 1), p) for p in layers[number])


def to_json(patterns: Sequence[Pattern]) -> list[Mapping[str, object]]:
    """Plain JSON values."""
    return [p.model_dump(by_alias=True, exclude_none=True) for p in patterns]
