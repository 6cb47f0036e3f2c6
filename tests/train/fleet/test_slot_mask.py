"""A masked slot of a bank over many layers is the adapter of its own layers alone."""

import pytest
import torch

from polyvera.adapter.inject import eject, inject
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.errors import LayoutError
from polyvera.model.load import Base
from polyvera.train.fleet.one_process import train_here
from polyvera.train.fleet.slot_mask import slot_mask
from polyvera.train.recipe import Recipe
from polyvera.train.tell import to_nobody
from polyvera.train.tenants import only_tenant

# Rows whose layers are all drawn as they are without the others, and do not share letters.
MASKED = [name for name, row in METHODS.items() if not row.tied]
CHOICES = {"model": "tiny", "rank": 4, "batch_size": 4, "max_steps": 2, "lr": 0.02, "fleet": True}


@pytest.mark.parametrize("method", MASKED)
def test_a_masked_slot_trains_as_if_its_layers_were_all(base: Base, counting: str, method: str) -> None:
    wide = inject(base.model, AdapterSpec(method, 4, "all-linear"), 1).layout
    eject(base.model)
    own = tuple(name for name in wide.site_names if name.endswith("q_proj"))
    size = {"in_max": wide.basis.in_max, "out_max": wide.basis.out_max} if wide.basis else {}

    def trained(targets: str | tuple[str, ...], sites: dict[str, tuple[str, ...]]):
        recipe = Recipe(**CHOICES, **size, data=counting, method=method, targets=targets)
        [outcome] = train_here(recipe, [only_tenant(recipe)], base=base, sites=sites, tell=to_nobody).outcomes
        assert outcome.adapter is not None
        return outcome.adapter

    masked, alone = trained("all-linear", {"": own}), trained(own, {})
    for key, tensor in alone.tensors.items():
        # not to the last bit: siblings share a product, and AdamW divides a gradient by its own size
        assert float((masked.tensors[key] - tensor).norm() / tensor.norm()) < 0.02, key
    still = inject(base.model, masked.spec, 1)
    still.start(still.first, {})
    moved = slot_mask(masked.layout, own).bool()
    assert torch.equal(masked.flat[~moved], still.take(still.first)[~moved])
    eject(base.model)


def test_what_no_slot_can_leave_out_is_refused(small_llama: torch.nn.Module) -> None:
    tied = next(name for name, row in METHODS.items() if row.tied)
    layout = inject(small_llama, AdapterSpec(tied, 4), 1).layout
    with pytest.raises(LayoutError, match="letters that layers have in common"):
        slot_mask(layout, layout.site_names[:1])
    eject(small_llama)
    layout = inject(small_llama, AdapterSpec(rank=4), 1).layout
    with pytest.raises(LayoutError, match="no layer 'nowhere'"):
        slot_mask(layout, ["nowhere"])
