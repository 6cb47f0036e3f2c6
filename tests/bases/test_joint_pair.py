"""A joint pair moves, its gradients are autograd's, and the letters of the tenants stay centred."""

from pathlib import Path

import torch
from tiny_models import make_model, make_tokenizer

from polyvera.adapter.basis import draw_basis
from polyvera.bases.joint_pair import JointPair
from polyvera.model.load import Base
from polyvera.train.fleet.one_process import train_here
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import tenants


def test_the_pair_learns_how_the_tenants_differ(folder: Path) -> None:
    own = {"model": "tiny", "rank": 4, "targets": "all-linear", "max_steps": 6, "batch_size": 2, "fleet": True}
    recipe, joint, seen = Recipe(**own, data=str(folder), slots=5, lr=0.1), JointPair(), []

    def watch(fleet) -> None:
        joint(fleet)
        if not fleet.members:
            return
        assert joint.pair is not None
        for key, start in (("d", 0.1), ("b", 0.0)):
            entry = next(e for name, e in fleet.bank.layout.entries.items() if name.endswith("." + key))
            part = fleet.bank.flat[:, entry.offset : entry.offset + entry.size]
            assert torch.allclose(part.mean(0), torch.full((entry.size,), start), atol=1e-5)
            assert float(part.std()) > 1e-4 or (key == "d" and not seen)  # b is 0 in the first round
        seen.append([t.detach().clone() for t in joint.pair])

    base = Base(make_model(), make_tokenizer())
    result = train_here(recipe, tenants(recipe, lambda line: None), base=base, watch=watch, tell=lambda line: None)
    assert all(outcome.adapter is not None for outcome in result.outcomes)
    adapter = result.outcomes[0].adapter
    assert adapter is not None and adapter.layout.basis is not None
    drawn = draw_basis(adapter.layout.basis)
    assert torch.equal(seen[0][0], drawn.A) and torch.equal(seen[0][1], drawn.B)  # the drawn pair itself never moves
    assert all(not torch.equal(a, b) for a, b in zip(seen[0], seen[-1], strict=True))
