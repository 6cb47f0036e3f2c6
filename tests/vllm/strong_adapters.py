"""Adapters drawn at random, so strong that they change what a model says, and what transformers says with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyvera.adapter.adapter import Adapter, adapter_from
from polyvera.adapter.base_layer import dense_weight
from polyvera.adapter.inject import eject, load
from polyvera.adapter.route import route
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites

SIZES = {"A": 0.05, "B": 0.05, "C": 0.3, "d": 0.4, "b": 0.3}
NUM_TOKENS = 12
PROMPTS = [
    "The sea is",
    "In the year 1900",
    "My favourite food",
    "She opened the door and",
    "Water boils",
    "The capital of France",
    "A good teacher",
    "Once upon a time",
    "The king said",
    "To bake bread",
    "Rivers run",
    "The machine stopped",
    "Every morning he",
    "The book on the table",
    "When it rains",
    "Two plus two",
]


def draw(model: nn.Module, spec: AdapterSpec, seed: int) -> Adapter:
    stream = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site, (wide, tall) in find_sites(model, spec).items():
        for letter in spec.row.trained:
            rank = spec.row.rank_within(spec.rank_of(site), tall)
            noise = torch.randn(spec.row.shape(letter, rank, wide, tall), generator=stream)
            norm = dense_weight(model.get_submodule(site)).float().norm(dim=1)
            tensors[f"{site}.{letter}"] = norm * (1 + 0.1 * noise) if letter == "m" else SIZES[letter] * noise
    return adapter_from(spec, find_sites(model, spec), tensors)


def answers(model: nn.Module, adapter: Adapter | None, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers says to each prompt alone, greedily, with one adapter or the bare base."""
    slots = [0] if adapter is None else load(model, adapter)
    try:
        return [_answer(model, slots[0] if adapter else None, prompt) for prompt in prompts]
    finally:
        eject(model)


@torch.no_grad()
def _answer(model, slot: int | None, prompt: list[int]) -> list[int]:
    ask = {"max_new_tokens": NUM_TOKENS, "do_sample": False}
    tokens = torch.tensor([prompt])
    if slot is None:
        return model.generate(tokens, **ask)[0, len(prompt) :].tolist()
    with route(torch.tensor([slot])):
        return model.generate(tokens, **ask)[0, len(prompt) :].tolist()
