"""Changing the adapter: of a bank with few and with many resident adapters, and of a merged model a thousand times.

    python benchmarks/switch.py [--resident 1000] [--switches 1000]

A small Llama with random weights. The first ratio is the time of one forward that changes its slot every time, many
adapters resident against two, in turns, medians. The second part switches a merged model and compares the base's bits.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera import AdapterSpec, Switch, eject, extract, inject, load, route
from polyvera.adapter.adapter import Adapter


def build(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Four layers of width 128 with grouped queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=512,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def adapters(model: nn.Module, count: int) -> list[Adapter]:
    """Adapters of one layout with numbers of their own."""
    spec = AdapterSpec(rank=64)
    bank = inject(model, spec, count)
    bank.flat.data.add_(0.1 * torch.randn(bank.flat.shape, generator=torch.Generator().manual_seed(1)))
    found = [extract(bank, slot, model) for slot in bank.slots[:8]]
    found = [found[i % len(found)] for i in range(count)]
    eject(model)
    return found


def forward_s(model: nn.Module, slot: int, ids: torch.Tensor) -> float:
    """Seconds of one forward on that slot."""
    start = time.perf_counter()
    with torch.no_grad(), route(slot):
        model(ids)
    return time.perf_counter() - start


def resident(many: int, rounds: int) -> float:
    """The time of a forward on an ever other slot: many resident over two."""
    models = {}
    for count in (2, many):
        models[count] = build()
        load(models[count], adapters(models[count], count))
    ids, seconds = torch.arange(32)[None], {count: [] for count in models}
    for i in range(rounds):
        for count, model in models.items():
            seconds[count].append(forward_s(model, 1 + (7 * i) % count, ids))
    return statistics.median(seconds[many]) / statistics.median(seconds[2])


def merged(switches: int, dtype: torch.dtype) -> bool:
    """Whether the base has its bits after so many switches."""
    model = build(dtype)
    several = adapters(model, 8)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    switch = Switch(model)
    for i in range(switches):
        switch.to(several[i % len(several)])
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters()), "nothing was merged"
    switch.restore()
    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def main() -> None:
    """Prints both results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resident", type=int, default=1000)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=300)
    chosen = parser.parse_args()
    ratio = resident(chosen.resident, chosen.rounds)
    print(f"forward on another slot each time, {chosen.resident} resident / 2 resident: {ratio:.3f}")
    for dtype in (torch.float32, torch.bfloat16):
        same = merged(chosen.switches, dtype)
        print(f"{chosen.switches} switches of a merged model in {dtype}: base bits unchanged: {same}")


if __name__ == "__main__":
    main()
