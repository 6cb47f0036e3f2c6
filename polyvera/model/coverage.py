"""coverage_of: what share of a model an adapter reaches, and what kinds of weights it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from polyvera.adapter.default_targets import block_of
from polyvera.adapter.targets import find_head, linear_layers, of_text

EXPERTS, EMBEDDINGS, CONVOLUTIONS = "experts", "embeddings", "convolutions"
LINEAR, BESIDE, HEAD, OTHERS = "other linear layers", "what reads no text", "the head", "others"


@dataclass(frozen=True)
class Coverage:
    """What is adapted of a model's blocks and of its weights of two or more axes.

    left_out: (kind, numbers) of the weights that are not, the largest first.
    """

    num_blocks: int
    num_adapted_blocks: int
    num_weights: int
    num_adapted_weights: int
    left_out: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """In words, such as '1 of 2 blocks and 38 % of the matrix weights are adapted; left out: experts 51 %'."""
        blocks = f"{self.num_adapted_blocks} of {self.num_blocks} blocks"
        left = ", ".join(f"{kind} {self._share(num)}" for kind, num in self.left_out)
        told = f"{blocks} and {self._share(self.num_adapted_weights)} of the matrix weights are adapted"
        return f"{told}; left out: {left}" if left else told

    def _share(self, num: int) -> str:
        share = 100 * num / max(self.num_weights, 1)
        return f"{share:.0f} %" if share >= 1 or not num else "under 1 %"


def coverage_of(model: nn.Module, sites: Collection[str]) -> Coverage:
    """What the named layers are of a bare model, which may be on the meta device."""
    linear = linear_layers(model)
    inside = set(of_text(model, {name: model for name, _ in model.named_modules()}))
    left: Counter[str] = Counter()
    adapted = 0
    for name, weight in model.named_parameters():
        module = name.rpartition(".")[0]
        if weight.dim() < 2:
            continue
        if module in sites or name in sites:
            adapted += weight.numel()
        else:
            left[_kind(model, name, weight, module in linear, module in inside)] += weight.numel()
    reached = {block_of(site) for site in sites} - {("", "")}
    lists = {block[0] for block in reached}
    blocks = {block_of(name) for name, _ in model.named_parameters()} - {("", "")}
    num_blocks = sum(block[0] in lists for block in blocks)
    return Coverage(num_blocks, len(reached), adapted + left.total(), adapted, tuple(left.most_common()))


def _kind(model: nn.Module, name: str, weight: Tensor, is_linear: bool, is_text: bool) -> str:
    owner = model.get_submodule(name.rpartition(".")[0])
    if name.partition(".")[0] in find_head(model):
        return HEAD
    if isinstance(owner, nn.Embedding):
        return EMBEDDINGS
    if not is_text and name.count(".") > 1:
        return BESIDE
    if "conv" in type(owner).__name__.lower() and not is_linear:
        return CONVOLUTIONS
    is_of_experts = weight.dim() == 3 and "expert" in f"{name} {type(owner).__name__}".lower()
    return LINEAR if is_linear else EXPERTS if is_of_experts else OTHERS
