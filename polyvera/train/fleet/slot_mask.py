"""slot_mask: which numbers of a slot may move, so that slots of one bank adapt some of its layers each."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from polyvera.adapter.layout import Layout
from polyvera.errors import LayoutError


def slot_mask(layout: Layout, sites: Collection[str]) -> Tensor:
    """1 for the letters of these layers and for heads, 0 for all else, (num_params,).

    A layer whose letters do not move adds nothing, since every row of the table starts there. Raises LayoutError for a
    layer that is not in the layout, and for letters that layers have in common.
    """
    unknown = sorted(set(sites) - set(layout.site_names))
    if unknown or layout.method.tied:
        what = f"no layer {unknown[0]!r}" if unknown else "letters that layers have in common"
        raise LayoutError(f"{layout.title}: {what}, so a slot of it cannot adapt some layers alone")
    found = torch.zeros(layout.num_params)
    for entry in (entry for stack in layout.stacks for entry in stack.entries):
        if not entry.letter or entry.site in sites:
            found[entry.offset : entry.offset + entry.size] = 1
    return found
