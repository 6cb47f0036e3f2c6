"""ExpertStack: one parameter of transformers' fused experts, a matrix for each expert, as a base layer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# What transformers says of a module of experts that any of its implementations can run (use_experts_implementation).
MARKS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")

KEYS = GATED, PLAIN, DOWN = "gate_up_proj", "up_proj", "down_proj"  # in the order of a module's parameters


@dataclass(frozen=True, eq=False, slots=True)
class ExpertStack:
    """The experts' matrices of one projection, (experts, out, in), or (experts, in, out) where it is transposed.

    module: the experts. key: the parameter's name there. What multiplies with it adds the biases, so it has none.
    """

    module: nn.Module
    key: str
    bias: None = None

    @property
    def weight(self) -> Tensor:
        """The parameter itself."""
        return self.module.get_parameter(self.key)

    @property
    def is_transposed(self) -> bool:
        """Whether each matrix is kept as (in, out)."""
        return bool(self.module.is_transposed)

    def parameters(self) -> Iterator[Tensor]:
        """The weight alone."""
        yield self.weight


def is_experts(module: nn.Module) -> bool:
    """Whether a module is transformers' fused experts."""
    return all(hasattr(module, mark) for mark in MARKS) and all(
        isinstance(weight, nn.Parameter) and weight.dim() == 3 and weight.is_floating_point()
        for weight in (getattr(module, key, None) for key in projections(module))
    )


def projections(module: nn.Module) -> tuple[str, str]:
    """The parameters of the two projections, in the order in which tokens pass through them."""
    experts: Any = module
    return (GATED if experts.has_gate else PLAIN, DOWN)


def stacks_of(module: nn.Module) -> dict[str, ExpertStack]:
    """The stacks of a module by the name of the parameter; none for any module but experts."""
    return {key: ExpertStack(module, key) for key in projections(module)} if is_experts(module) else {}
