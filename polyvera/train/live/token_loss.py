"""The table of losses: what each makes of the log-probabilities of the target tokens. All are sums over tokens.

p is the log-probability of a target under the adapter that trains, q the one under the policy that sampled it, A the
advantage, r = exp(p - q).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from polyvera.errors import DataError, did_you_mean

CROSS_ENTROPY = "cross_entropy"
ROWS = "rows"  # which row each target is of, an input that every loss may read
Inputs = Mapping[str, Tensor]
Params = Mapping[str, float]
NO_PARAMS: Params = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """One row of the table.

    inputs: what it needs of each target, by name. params: its parameters and their defaults. of: (p, inputs, params) ->
    the loss of each target, all (targets,).
    """

    inputs: tuple[str, ...]
    params: Params
    of: Callable[[Tensor, Inputs, Params], Tensor]
    source: str


def _ratio(p: Tensor, inputs: Inputs) -> Tensor:
    """r, and 1 where the advantage is 0: a prompt's positions come with a q that means nothing."""
    return torch.exp(torch.where(inputs["advantages"] == 0, 0.0, p - inputs["logprobs"]))


def _cross_entropy(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    return -inputs["weights"] * p


def _importance_sampling(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    return -_ratio(p, inputs) * inputs["advantages"]


def _ppo(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    r, A = _ratio(p, inputs), inputs["advantages"]
    return -torch.minimum(r * A, _clipped(r, params) * A)


def _cispo(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    return -_clipped(_ratio(p, inputs), params).detach() * p * inputs["advantages"]


def _dro(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    return -(p * inputs["advantages"] - 0.5 * params["beta"] * (p - inputs["logprobs"]).square())


def _gspo(p: Tensor, inputs: Inputs, params: Params) -> Tensor:
    """One ratio for all of a row's targets, the geometric mean of those that the mask chooses."""
    A, mask, rows = inputs["advantages"], inputs["sequence_ratio_mask"], inputs[ROWS]
    gaps = torch.where(mask == 0, 0.0, p - inputs["logprobs"]) * mask
    zeros = p.new_zeros(int(rows.max()) + 1)
    mean = zeros.index_add(0, rows, gaps) / zeros.index_add(0, rows, mask).clamp(min=1.0)
    r = torch.exp(torch.where(A == 0, 0.0, mean.detach()[rows] + p - p.detach()))
    return -torch.minimum(r * A, _clipped(r, params) * A)


def _clipped(r: Tensor, params: Params) -> Tensor:
    return r.clamp(params["clip_low_threshold"], params["clip_high_threshold"])


POLICY = ("logprobs", "advantages")
CLIPS: Params = MappingProxyType({"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})
TOKEN_LOSSES: Mapping[str, TokenLoss] = MappingProxyType(
    {
        CROSS_ENTROPY: TokenLoss(("weights",), NO_PARAMS, _cross_entropy, ""),
        "importance_sampling": TokenLoss(POLICY, NO_PARAMS, _importance_sampling, "Williams 1992"),
        "ppo": TokenLoss(POLICY, CLIPS, _ppo, "Schulman 2017, equation 7"),
        "cispo": TokenLoss(POLICY, CLIPS, _cispo, "MiniMax 2025, equation 4"),
        "gspo": TokenLoss((*POLICY, "sequence_ratio_mask"), CLIPS, _gspo, "Zheng 2025, section 4.3"),
        "dro": TokenLoss(POLICY, MappingProxyType({"beta": 0.05}), _dro, "Richemond 2024"),
    }
)


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss with its parameters, the defaults where none are given. Raises DataError for what no row of the table has.

    name: a key of TOKEN_LOSSES. given: (parameter, value), in any order.
    """

    name: str = CROSS_ENTROPY
    given: tuple[tuple[str, float], ...] = field(default=())

    def __post_init__(self) -> None:
        if self.name not in TOKEN_LOSSES:
            near = did_you_mean(self.name, TOKEN_LOSSES)
            raise DataError(f"loss={self.name!r} must be one of: {', '.join(TOKEN_LOSSES)}{near}")
        for name, _ in self.given:
            if name not in self.row.params:
                raise DataError(f"{self.name} takes {', '.join(self.row.params) or 'no parameters'}, not {name!r}")

    @property
    def row(self) -> TokenLoss:
        """Its row of the table."""
        return TOKEN_LOSSES[self.name]

    @property
    def params(self) -> Params:
        """Every parameter's value."""
        return {**self.row.params, **dict(self.given)}

    def check(self, inputs: Iterable[str]) -> None:
        """Raises DataError where an input that the loss needs is not among them."""
        given = set(inputs)
        missing = [name for name in self.row.inputs if name not in given]
        if missing:
            raise DataError(f"{self.name} needs {' and '.join(self.row.inputs)} of every row; one lacks {missing[0]}")

    def losses(self, logprobs: Tensor, inputs: Inputs) -> Tensor:
        """The loss of each target, (targets,)."""
        return self.row.of(logprobs, inputs, self.params)
