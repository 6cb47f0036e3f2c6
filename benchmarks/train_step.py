"""One training step, forward and backward: polyvera against PEFT and against the frozen base model alone.

    python benchmarks/train_step.py [--rounds 15] [--device cpu] [--layers 30]

SmolLM2-135M's shapes with random weights, 8 x 64 tokens; all models take turns within each round, and the table
shows medians over the rounds, as ratios. Saved activations are what autograd keeps for the backward beyond what the
frozen base keeps: each storage once, parameters and buffers left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.inject import banks_of, inject
from polyvera.adapter.spec import AdapterSpec

QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = {"vera": 256, "dvora": 256}


@dataclass(frozen=True)
class Case:
    """One pair to compare: a row of the table on some targets, and PEFT's counterpart where it has one."""

    method: str
    targets: tuple[str, ...]
    peer: peft.PeftConfig | None
    time_bar: str = ""
    memory_bar: str = ""


CASES = (
    Case("vera", QV, peft.VeraConfig(r=256, target_modules=list(QV)), "<= 1.10 x base, <= PEFT", "<= 15 %"),
    Case("vera", ALL, peft.VeraConfig(r=256, target_modules=list(ALL)), "<= 0.95 x PEFT", "<= 15 %"),
    Case("dora", QV, peft.LoraConfig(r=8, target_modules=list(QV), use_dora=True), "<= 0.60 x PEFT", "<= 10 %"),
    Case("dora", ALL, peft.LoraConfig(r=8, target_modules=list(ALL), use_dora=True), "<= 0.60 x PEFT", "<= 10 %"),
    Case("lora", ALL, peft.LoraConfig(r=8, target_modules=list(ALL))),
    Case("dvora", QV, None),
    Case("dvora", ALL, None),
)


def build(layers: int, device: str) -> LlamaForCausalLM:
    """SmolLM2-135M's shapes with random frozen weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).requires_grad_(False).to(device).train()


def stepper(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """A forward that ends in the loss; gradients flow to the input embeddings, as they do under any first layer."""
    embeddings = model.get_input_embeddings()(ids).detach()  # type: ignore[operator]

    def forward() -> Tensor:
        return model(inputs_embeds=embeddings.clone().requires_grad_(), labels=ids).loss  # type: ignore[no-any-return]

    return forward


def timed(forward: Callable[[], Tensor]) -> float:
    """Seconds of one forward and backward."""
    _wait()
    start = time.perf_counter()
    forward().backward()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward, each storage once, weights and bases left out."""
    own = [*model.parameters(), *model.buffers()]
    for bank in banks_of(model):
        own += [] if bank.basis is None else [bank.basis.A, bank.basis.B]
    known = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t.detach()  # an output that its own graph keeps would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()
    del loss
    return sum(kept.values())


def measure(case: Case, layers: int, device: str, rounds: int, ids: Tensor) -> tuple[str, ...]:
    """One row of the printed table."""
    models: dict[str, nn.Module] = {"base": build(layers, device), "ours": build(layers, device)}
    inject(models["ours"], AdapterSpec(case.method, rank=RANKS.get(case.method), targets=case.targets))
    if case.peer is not None:
        models["peft"] = peft.get_peft_model(build(layers, device), case.peer)
    steps = {name: stepper(model, ids) for name, model in models.items()}
    kept = {name: saved_bytes(models[name], steps[name]) for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    ours, peer = (kept.get(name, 0) - kept["base"] for name in ("ours", "peft"))
    against = (f"{median['ours'] / median['peft']:.3f}", f"{100 * ours / peer:.1f} %") if case.peer else ("-", "-")
    return (
        f"{case.method} {'q,v' if case.targets == QV else 'all-linear'}",
        f"{median['base'] * 1000:.0f}",
        f"{median['ours'] / median['base']:.3f}",
        f"{median['peft'] / median['base']:.3f}" if case.peer else "-",
        against[0],
        f"{ours / 2**20:.1f}",
        f"{peer / 2**20:.1f}" if case.peer else "-",
        against[1],
        f"time {case.time_bar}; kept {case.memory_bar}" if case.time_bar else "",
    )


def main() -> None:
    """Measures every case and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help="a method: only its cases")
    chosen = parser.parse_args()
    name = (
        torch.cuda.get_device_name() if chosen.device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )
    ids = torch.randint(0, 49000, (8, 64), generator=torch.Generator().manual_seed(0)).to(chosen.device)
    table = Table(title=f"One step, 8 x 64 tokens, {chosen.layers} layers, {name}, torch {torch.__version__}")
    for column in ("case", "base ms", "ours/base", "PEFT/base", "ours/PEFT", "kept MiB", "PEFT kept", "of PEFT", "bar"):
        table.add_column(column)
    for case in CASES:
        if chosen.only in (None, case.method):
            row = measure(case, chosen.layers, chosen.device, chosen.rounds, ids)
            print(*row, sep="  ", flush=True)
            table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
