"""ExpertStack: one parameter of transformers' fused experts, a matrix for each expert, as a base layer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

KEYS = GATED, PLAIN, DOWN = "gate_up_proj", "up_proj", "down_proj"  # in the order of a module's parameters


def _by_own_gate(experts: Any, y: Tensor) -> Tensor:
    return experts._apply_gate(y)  # type: ignore[no-any-return]


def _by_activation(experts: Any, y: Tensor) -> Tensor:
    return experts.act_fn(y)  # type: ignore[no-any-return]


def _by_halves(experts: Any, y: Tensor) -> Tensor:
    gate, up = y.chunk(2, dim=-1)
    return experts.act_fn(gate) * up  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How a module of experts computes.

    up: the parameter of the first projection. activated: (module, its output) -> the input of the second. has_bias:
    whether each projection adds the expert's bias. has_norm: whether the module's post_expert_norm comes last.
    is_transposed: whether a matrix is kept as (in, out). sees_all: whether the module gets the whole batch once for
    each expert, weighted already, (experts x tokens, hidden), and not each token's experts and their weights.
    """

    up: str
    activated: Callable[[Any, Tensor], Tensor]
    has_bias: bool
    has_norm: bool
    is_transposed: bool
    sees_all: bool = False

    @property
    def keys(self) -> tuple[str, str]:
        """The parameters of the two projections, in the order in which tokens pass through them."""
        return self.up, DOWN


# What transformers says of a module of experts that any of its implementations can run (use_experts_implementation).
MARKS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")
# The experts that have one implementation alone.
FORMS: Mapping[str, ExpertForm] = {
    "Llama4TextExperts": ExpertForm(GATED, _by_halves, False, False, True, sees_all=True)
}


@dataclass(frozen=True, eq=False, slots=True)
class ExpertStack:
    """The experts' matrices of one projection, (experts, out, in), or (experts, in, out) where it is transposed.

    module: the experts. key: the parameter's name there. What multiplies with it adds the biases, so it has none.
    """

    module: nn.Module
    key: str
    is_transposed: bool
    bias: None = None

    @property
    def weight(self) -> Tensor:
        """The parameter itself."""
        return self.module.get_parameter(self.key)

    def parameters(self) -> Iterator[Tensor]:
        """The weight alone."""
        yield self.weight


def form_of(module: nn.Module) -> ExpertForm | None:
    """How transformers' fused experts compute; None for any other module."""
    form = FORMS.get(type(module).__name__) or _marked(module)
    if form is None or not all(_is_stack(getattr(module, key, None)) for key in form.keys):
        return None
    return form


def stacks_of(module: nn.Module) -> dict[str, ExpertStack]:
    """The stacks of a module by the name of the parameter; none for any module but experts."""
    form = form_of(module)
    return {} if form is None else {key: ExpertStack(module, key, form.is_transposed) for key in form.keys}


def _marked(module: Any) -> ExpertForm | None:
    if not all(hasattr(module, mark) for mark in MARKS):
        return None
    up, activated = (GATED, _by_own_gate) if module.has_gate else (PLAIN, _by_activation)
    return ExpertForm(up, activated, module.has_bias, module.has_post_expert_norm, module.is_transposed)


def _is_stack(weight: Any) -> bool:
    return isinstance(weight, nn.Parameter) and weight.dim() == 3 and weight.is_floating_point()
