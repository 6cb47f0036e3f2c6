"""How much memory thousands of resident adapters take, and how fast slots are written."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from ceilings import synchronize
from decoding import NOISE
from shapes import NAMES
from train_step import QV
from training import RANK
from transformers import LlamaForCausalLM

from polyvera.adapter.inject import add_bank, eject, extract, inject
from polyvera.adapter.spec import AdapterSpec

FRESH = 16


def row(model: LlamaForCausalLM, shape: str, num: int) -> dict[str, Any]:
    """Fills a serving bank of `num` slots with adapters on q and v."""
    spec = AdapterSpec("vera", rank=RANK, targets=QV)
    bank = inject(model, spec)
    fresh = extract(bank, bank.first, model)
    eject(model)
    before = _allocated(model.device)
    served = add_bank(model, fresh.layout, num, fresh.basis(), dtype=model.dtype)
    grown = _allocated(model.device) - before
    some = [replace(fresh, flat=fresh.flat + NOISE * torch.randn_like(fresh.flat)) for _ in range(FRESH)]
    synchronize(model.device)
    started = perf_counter()
    for i, slot in enumerate(served.slots):
        served.put(slot, some[i % FRESH])
    synchronize(model.device)
    seconds = perf_counter() - started
    eject(model)
    return {
        "what": f"{num} resident adapters, {NAMES[shape]}, q,v",
        "GiB": grown / 2**30,
        "KiB an adapter": served.flat.nbytes / num / 2**10,
        "slots written/s": num / seconds,
    }


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
