"""A layer's saliency is the squared norm of the gradient that torch gives its weight."""

import pytest

from polyvera.adapter.targets import linear_layers
from polyvera.data.batching import Collator
from polyvera.data.tables import read
from polyvera.data.target_tokens import TargetTokens
from polyvera.model.config import pad_token
from polyvera.model.load import Base
from polyvera.search.candidate import Sizer, sites_of
from polyvera.search.saliency import TOGETHER, saliencies
from polyvera.train.loss import row_losses
from polyvera.train.preparation import encode_tables
from polyvera.train.tenants import Tables


def test_it_is_the_norm_of_the_weights_gradient(sizer: Sizer, base: Base, counting: str) -> None:
    table = read(counting)
    rows = encode_tables(sizer.recipe.replaced(validation=None), Tables(table, None, None), base)[0].rows[:TOGETHER]
    found = saliencies(base, rows, table.row, list(sites_of(sizer.recipe, base)))
    assert sum(found.values()) == pytest.approx(1)
    assert not base.model.training and not any(p.grad is not None for p in base.model.parameters())
    base.model.requires_grad_(True)
    batch = Collator(pad_token(base.model, base.tokenizer))(rows)
    targets = TargetTokens.of(batch.pop("labels"), table.row.predicts)
    row_losses(base.model, batch, targets, table.row).mean().backward()
    norms = {name: float(linear_layers(base.model)[name].weight.grad.square().sum()) for name in found}
    assert list(found.values()) == pytest.approx([norm / sum(norms.values()) for norm in norms.values()], rel=1e-3)
