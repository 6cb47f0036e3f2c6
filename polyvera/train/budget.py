"""The rank budget of AdaLoRA (Zhang 2023, sections 3.2 and 3.3) for every row of the table that trains d.

A triplet is one number d_i with its row of A and its column of B. Its score is s(d_i) + mean_j s(A_ij) + mean_j s(B_ji)
over the letters that the row trains, s(w) the smoothed |w ∂L/∂w| times its smoothed uncertainty. The best b(t) triplets
of all layers are kept; the others' d is set to 0, and they may come back until the final phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.bank import Bank
from polyvera.errors import RecipeError
from polyvera.train.rank_budget import Budget

ORTHOGONAL = 0.1
AXIS = {"A": 1, "B": 0}  # the axis of a matrix over which a triplet's share of it is averaged


@dataclass(frozen=True, slots=True)
class Schedule:
    """b(t), the number of triplets kept at optimizer step t, counted from 0, of `total` steps.

    start until `warmup`, then cubic down to `end`, which holds for the last `final` steps; a pruning every `interval`
    steps (AdaLoRA, Zhang 2023, section 3.3). Raises RecipeError for a run too short for it.
    """

    start: int
    end: int
    total: int
    warmup: int
    final: int
    interval: int

    def __post_init__(self) -> None:
        if self.warmup + self.final >= self.total:
            raise RecipeError(
                f"budget: {self.warmup} warm-up and {self.final} final steps leave none of the {self.total} steps of "
                "this run to shrink the ranks: train longer, or set budget.warmup and budget.final"
            )

    @property
    def freezes(self) -> int:
        """The step from which the mask no longer changes."""
        return self.total - self.final

    def kept(self, step: int) -> int:
        """b(t)."""
        if step <= self.warmup:
            return self.start
        left = max(0.0, 1 - (step - self.warmup) / (self.freezes - self.warmup))
        return int((self.start - self.end) * left**3 + self.end)

    def prunes(self, step: int) -> bool:
        """Whether the mask is computed again after this step."""
        shrinking = self.warmup < step < self.freezes and step % self.interval == 0
        return shrinking or step == self.freezes


def schedule(budget: Budget, bank: Bank, total: int) -> Schedule:
    """The schedule of a recipe's budget on the layers of a bank.

    Raises RecipeError where the run is too short, or for a stack of experts, which all have one rank.
    """
    sites = bank.layout.sites
    stack = next((s.name for s in sites if s.num_experts), None)
    if stack is not None:
        raise RecipeError(f"budget: the experts of {stack} all have one rank, so none shrinks alone; leave them out")
    warmup = total // 10 if budget.warmup is None else budget.warmup
    final = max(1, 3 * total // 10) if budget.final is None else budget.final
    interval = max(1, total // 100) if budget.interval is None else budget.interval
    return Schedule(sum(s.rank for s in sites), round(budget.rank * len(sites)), total, warmup, final, interval)


@dataclass(slots=True)
class Importance:
    """The smoothed sensitivity of one tensor and its uncertainty, both of the tensor's shape."""

    mean: Tensor
    spread: Tensor

    def update(self, weight: Tensor, grad: Tensor, beta1: float, beta2: float) -> None:
        """Takes in one step's |w ∂L/∂w| and its uncertainty, smoothed by beta1 and beta2 (Zhang 2023, section 3.2)."""
        now = (weight * grad).abs()
        self.mean = beta1 * self.mean + (1 - beta1) * now
        self.spread = beta2 * self.spread + (1 - beta2) * (now - self.mean).abs()


@dataclass(slots=True)
class Allocator:
    """Scores the triplets of slot `index` of a bank and keeps the number that the schedule says."""

    bank: Bank
    schedule: Schedule
    beta1: float = 0.85
    beta2: float = 0.85
    index: int = 0
    scores: dict[str, Importance] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)

    def step(self, step: int) -> None:
        """After the optimizer's step number `step`, from 0, and before the gradients are cleared."""
        if step < self.schedule.freezes:
            self._score()
        if self.schedule.prunes(step):
            self._prune(self.schedule.start - self.schedule.kept(step))
        if self.schedule.prunes(step) or step > self.schedule.freezes:
            self._mask()

    def state(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name."""
        scores = {f"{key}.{part}": getattr(s, part) for key, s in self.scores.items() for part in ("mean", "spread")}
        return {**scores, **{f"{site}.mask": mask for site, mask in self.masks.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.scores = {
            key: Importance(state[f"{key}.mean"].to(p.device), state[f"{key}.spread"].to(p.device))
            for key, p in self._tensors()
            if f"{key}.mean" in state
        }
        self.masks = {key.removesuffix(".mask"): mask for key, mask in state.items() if key.endswith(".mask")}

    @property
    def ranks(self) -> dict[str, int]:
        """The triplets left in each layer."""
        return {s.name: int(self.masks[s.name].sum()) if self.masks else s.rank for s in self.bank.layout.sites}

    def _tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        letters = [x for x in ("A", "B", "d") if x in self.bank.layout.method.trained]
        for site, layer in self.bank.layers.items():
            yield from ((f"{site}.{letter}", layer.get_parameter(letter)) for letter in letters)

    def _score(self) -> None:
        with torch.no_grad():
            for key, parameter in self._tensors():
                grad = parameter.grad
                if grad is not None:
                    weight = parameter[self.index]
                    fresh = Importance(torch.zeros_like(weight), torch.zeros_like(weight))
                    self.scores.setdefault(key, fresh).update(weight, grad[self.index], self.beta1, self.beta2)

    def _prune(self, num_pruned: int) -> None:
        """The mask of the best triplets: those above the num_pruned-th smallest score of all layers."""
        scores = {site: self._triplets(site) for site in self.bank.layers}
        bar = torch.cat(list(scores.values())).kthvalue(num_pruned).values if num_pruned else -torch.inf
        self.masks = {site: score > bar for site, score in scores.items()}

    def _triplets(self, site: str) -> Tensor:
        shares: dict[str, Tensor] = {}
        for letter in ("A", "B", "d"):
            importance = self.scores.get(f"{site}.{letter}")
            if importance is not None:
                score = importance.mean * importance.spread
                shares[letter] = score.mean(AXIS[letter]) if letter in AXIS else score
        d = shares.pop("d")
        return d if not shares else d + sum(shares.values())

    def _mask(self) -> None:
        with torch.no_grad():
            for site, mask in self.masks.items():
                d = self.bank.layers[site].get_parameter("d")
                d[self.index].masked_fill_(~mask.to(d.device), 0.0)


def trains_pair(bank: Bank) -> bool:
    """Whether each layer has an A and a B of its own that are trained."""
    return {"A", "B"} <= set(bank.layout.method.trained)


def orthogonality(bank: Bank) -> Tensor | None:
    """The mean over all trained A and B of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖ (Frobenius), or None where they are frozen."""
    if not trains_pair(bank):
        return None
    norms = [norm for layer in bank.layers.values() for norm in (_skew(layer.A), _skew(layer.B.mT))]  # type: ignore[arg-type]
    return torch.stack(norms).mean()


def _skew(rows: Tensor) -> Tensor:
    gram = rows @ rows.mT
    norm: Tensor = torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype))
    return norm.mean()


def orthogonal_weight(budget: Budget, bank: Bank) -> float:
    """The weight of `orthogonality` in the loss; 0 where A and B are frozen."""
    if not trains_pair(bank):
        return 0.0
    return ORTHOGONAL if budget.orthogonal is None else budget.orthogonal


def _is_kept(d: Tensor) -> Tensor:
    """Which ranks are used, by any expert of a stack: (rank,)."""
    return (d != 0) if d.dim() == 1 else (d != 0).any(0)


def compacted(adapter: Adapter) -> Adapter:
    """The same adapter without the triplets whose d is 0, where each layer has an A and B of its own; else as it is."""
    if not {"A", "B", "d"} <= set(adapter.layout.stored_letters):
        return adapter
    tensors = adapter.tensors
    shapes = {site.name: site.widths for site in adapter.layout.sites}
    kept = {name: _is_kept(tensors[f"{name}.d"]) for name in shapes}
    for name, mask in kept.items():
        tensors[f"{name}.d"], tensors[f"{name}.A"] = tensors[f"{name}.d"][..., mask], tensors[f"{name}.A"][..., mask, :]
        tensors[f"{name}.B"] = tensors[f"{name}.B"][..., mask]
    spec = replace(adapter.spec, rank_pattern=tuple((name, int(mask.sum())) for name, mask in kept.items()))
    smaller = adapter_from(spec, shapes, tensors)
    return replace(adapter, spec=spec, layout=smaller.layout, flat=smaller.flat)
