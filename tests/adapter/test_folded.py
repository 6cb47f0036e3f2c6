"""The equal LoRA: one rank, and B A is the change of the weight with no scale."""

import pytest
import torch
from drawn_adapters import drawn

from polyvera.adapter.equation import delta_weight
from polyvera.adapter.folded import factors_of, folded, folded_rank
from polyvera.adapter.method import METHODS
from polyvera.errors import SpecError

MIXED = {"rank_pattern": (("layers.1.q", 2),)}
SCALED = {"alpha": 7.0, "alpha_pattern": (("layers.2.v", 3.0),)}


def choices(row):
    return ({} if row.shares_basis else MIXED) | (SCALED if row.takes_alpha else {})


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_the_product_is_the_change_of_the_weight(row):
    adapter = drawn(row.name, **choices(row))
    basis, layers = adapter.basis(), folded(adapter, magnitude=True)
    assert {f["A"].shape[0] for f in layers.values()} == {folded_rank(adapter)} == {4}
    for site in adapter.layout.sites:
        f, own = layers[site.name], factors_of(adapter, site, basis)
        wanted = delta_weight(own["A"], own["B"], own.get("d"), own.get("b"), site.scale, own.get("C"))
        torch.testing.assert_close(f["B"] @ f["A"], wanted, rtol=1e-5, atol=1e-6)
        assert ("m" in f) == ("m" in row.trained)


def test_a_magnitude_is_not_folded_unasked():
    with pytest.raises(SpecError, match=r"magnitude.*merge"):
        folded(drawn("dora"))
