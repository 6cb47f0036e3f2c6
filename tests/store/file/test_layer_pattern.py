"""layer_pattern: many layers in few records, and every record back to its layers."""

from __future__ import annotations

import pytest

from polyvera.adapter.layout import layout_of
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import FormatError
from polyvera.store.file.layer_pattern import MAX_SITES, Pattern, fold, unfold

ALIKE = {f"model.layers.{i}.{name}": widths for i in range(12) for name, widths in (("q", (8, 8)), ("v", (8, 4)))}
GAPS = {f"h.{i}.q": (8, 8) for i in (0, 1, 2, 5, 7, 8)}
UNEVEN = {f"h.{i}.q": (8, 8 if i % 2 else 4) for i in range(4)}
NO_NUMBERS = {"q": (8, 8), "head.v": (8, 2)}
EXPERTS = {f"h.{i}.experts.up": (8, 6, 4) for i in range(3)}
BOTH = {f"h.{i}.{name}": widths for i in range(3) for name, widths in (("q", (8, 8)), ("experts.up", (8, 6, 4)))}


@pytest.mark.parametrize(
    ("widths", "num_records"),
    [
        (ALIKE, 2),
        (GAPS, 1),
        (UNEVEN, 2),
        (NO_NUMBERS, 2),
        (ALIKE | NO_NUMBERS, 4),
        (EXPERTS, 1),
        (BOTH, 2),
        (EXPERTS | GAPS, 9),
    ],
)
def test_what_is_folded_unfolds_to_the_same_layers_in_order(widths: dict[str, tuple[int, ...]], num_records) -> None:
    sites = layout_of(AdapterSpec(rank=2), widths).sites
    records = fold(sites)
    assert len(records) == num_records
    assert list(unfold(records).items()) == [(s.name, widths[s.name]) for s in sites]


def test_layer_numbers_are_written_as_ranges() -> None:
    [record] = fold(layout_of(AdapterSpec(rank=2), GAPS).sites)
    assert (record.name, record.layers) == ("h.*.q", "0-2,5,7-8")


def pattern(name: str, layers: str | None) -> Pattern:
    return Pattern.model_validate({"name": name, "layers": layers, "in": 8, "out": 8})


def test_refusals() -> None:
    with pytest.raises(FormatError, match=r"names the layer 'h\.1\.q' twice"):
        unfold([pattern("h.*.q", "0-2"), pattern("h.1.q", None)])
    with pytest.raises(FormatError, match=f"more than {MAX_SITES} layers"):
        unfold([pattern("h.*.q", "0-999999999")])
