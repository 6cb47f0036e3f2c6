"""JointPair: A and B learned beside the letters of a fleet's tenants, which stay centred over them.

A pair that is trained with free letters learns the tenants' mean alone, and their own letters learn nothing. So after
each round every letter's mean over the tenants is set back to where the letter started; what is left to learn is how
the tenants differ.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from polyvera.adapter.bank import Bank
from polyvera.adapter.basis import Basis
from polyvera.adapter.hashing import initial
from polyvera.train.fleet.fleet import Fleet

STEP = 0.03  # of Adam at the full rate, of the average size of A's and of B's numbers


class JointPair:
    """What is called after each round of a fleet whose tenants all train at once.

    A (rank, in_max), B (out_max, rank): as they have been learned. They move from the second round on.
    """

    def __init__(self) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None

    def __call__(self, fleet: Fleet) -> None:
        """A step of A and B, after one of every tenant's letters, which are centred then."""
        if self.pair is None:
            self._begin(fleet)
        elif fleet.members:
            self._step(fleet)
        _centre(fleet)

    def _begin(self, fleet: Fleet) -> None:
        """Gives the bank a copy of its own of the pair, which wants gradients."""
        bank, was = fleet.bank, fleet.bank.basis
        assert was is not None
        A, B = (t.to(bank.flat.device, bank.dtype, copy=True).requires_grad_() for t in (was.A, was.B))
        bank.basis = basis = Basis(was.key, A, B, "")
        for site in bank.layout.sites:  # views that are made now lead gradients to A and B
            basis.part(A.device, A.dtype, site.in_features, site.out_features)
        self.pair = A, B
        sizes = [float(t.detach().square().mean().sqrt()) for t in (A, B)]
        groups = [{"params": [t], "lr": STEP * size} for t, size in zip((A, B), sizes, strict=True)]
        self._rates, self._optimizer = [STEP * size for size in sizes], torch.optim.Adam(groups)

    def _step(self, fleet: Fleet) -> None:
        factor = max(member.factor(member.step - 1) for member in fleet.members)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad()


def _centre(fleet: Fleet) -> None:
    """Moves every letter's mean over the tenants that train to where the letter started."""
    bank, indices = fleet.bank, [member.index for member in fleet.members]
    if len(indices) < 2:
        return
    columns, start = _letters(bank)
    with torch.no_grad():
        own = bank.flat[indices][:, columns]
        bank.flat[torch.tensor(indices)[:, None], columns] = own - own.mean(0) + start.to(own)
    bank.version += 1


def _letters(bank: Bank) -> tuple[Tensor, Tensor]:
    """The places of the letters that start without the base's weights, and their starts."""
    assert bank.spec is not None
    entries = [e for e in chain(*(stack.entries for stack in bank.layout.stacks)) if e.letter in bank.spec.row.hashed]
    places = [torch.arange(entry.offset, entry.offset + entry.size) for entry in entries]
    return torch.cat(places), torch.cat([initial(entry, bank.spec).flatten() for entry in entries])
