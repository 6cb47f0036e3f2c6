"""One training step, forward and backward: ours and PEFT's against the frozen base model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import peft
import torch
from ceilings import Ceilings, interleaved
from shapes import NAMES, num_matrix_params, twin
from torch import nn
from train_step import ALL, QV, saved_bytes
from transformers import LlamaForCausalLM

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec

RANK = 256
TARGETS = {"q,v": QV, "all-linear": ALL}
Row = dict[str, Any]


def stepper(model: nn.Module, ids: torch.Tensor, autocast: bool = False) -> Callable[[], torch.Tensor]:
    """A forward that ends in the loss; gradients flow to the input embeddings, as they do under any first layer."""
    embeddings = model.get_input_embeddings()(ids).detach()  # type: ignore[operator]

    def forward() -> torch.Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16) if autocast else nullcontext():
            return model(inputs_embeds=embeddings.clone().requires_grad_(), labels=ids, use_cache=False).loss

    return forward


def rows(model: LlamaForCausalLM, shape: str, ceilings: Ceilings, rounds: int, batch: tuple[int, int]) -> Iterator[Row]:
    """A row for each set of targets; PEFT is the faster of plain and under autocast."""
    ids = torch.randint(2, model.config.vocab_size, batch, device=model.device)
    for name, targets in TARGETS.items():
        ours, plain = twin(model), twin(model)
        inject(ours, AdapterSpec("vera", rank=RANK, targets=targets))
        theirs = peft.get_peft_model(plain, peft.VeraConfig(r=RANK, target_modules=list(targets)))
        models = {"base": model, "ours": ours, "PEFT": theirs, "PEFT, autocast": theirs}
        steps = {key: stepper(value.train(), ids, "autocast" in key) for key, value in models.items()}
        seconds = interleaved({key: _backward(step) for key, step in steps.items()}, rounds, ids.device)
        kept = {key: saved_bytes(models[key], step) for key, step in steps.items()}
        peer = min(("PEFT", "PEFT, autocast"), key=seconds.__getitem__)
        floor = ceilings.floor_s(*work_of(model, ids.numel()))
        yield {
            "what": f"train step, {NAMES[shape]}, {name}, {batch[0]} x {batch[1]} tokens",
            "base_ms": 1000 * seconds["base"],
            "ours/base": seconds["ours"] / seconds["base"],
            "PEFT/base": seconds[peer] / seconds["base"],
            "ours/PEFT": seconds["ours"] / seconds[peer],
            "peer": peer,
            "kept_MiB": (kept["ours"] - kept["base"]) / 2**20,
            "PEFT_kept_MiB": (kept[peer] - kept["base"]) / 2**20,
            "base of floor": floor / seconds["base"],
            "bar": "ours/base <= 1.06, ours/PEFT <= 1" if name == "q,v" else "",
        }
        model.eval()


def _backward(step: Callable[[], torch.Tensor]) -> Callable[[], None]:
    return lambda: step().backward()


def work_of(model: LlamaForCausalLM, num_tokens: int) -> tuple[float, float]:
    """(bytes, operations) of the base's step: each weight read twice; a product forward, one back to the input."""
    params = num_matrix_params(model)
    return 2 * params * model.dtype.itemsize, 4 * params * num_tokens
