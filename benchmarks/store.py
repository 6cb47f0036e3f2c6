"""How fast ten thousand adapters are listed, got and loaded into a bank, beside the same bytes read raw.

    python benchmarks/store.py [--num 10000] [--rounds 5] [--folder /tmp/registry] [--stored int4]

One adapter is VeRA of rank 256 on the query and value projections of SmolLM2-135M: 38,400 trained numbers, 153,600
bytes. All files are in the page cache. Every way of reading is timed once a round, in turn, and its median is told.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.bank import Bank
from polyvera.adapter.inject import add_bank
from polyvera.adapter.layout import layout_of
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.store.file.codec import encode, read_header
from polyvera.store.file.stored_dtype import STORED_DTYPES
from polyvera.store.reference import AdapterRef
from polyvera.store.registry import Registry

SPEC = AdapterSpec(rank=256)
NUM_PUTS, NUM_GETS = 200, 2000


def smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M's attention, with next to no vocabulary and MLP, which no adapter here touches."""
    attention = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, intermediate_size=64, **attention))


def first_adapter(model: LlamaForCausalLM) -> Adapter:
    layout = layout_of(SPEC, find_sites(model, SPEC))
    nothing = Adapter(SPEC, layout, torch.zeros(layout.num_params))
    basis = nothing.basis()
    assert basis is not None
    words = {"base": "0123456789abcdef-fedcba9876543210", "created": "2025-11-21T22:00:00+00:00"}
    return replace(nothing, basis_sha256=basis.sha256, scores={"accuracy": 0.8125}, **words)


def filled(folder: Path, adapter: Adapter, num: int, dtype: str) -> Registry:
    """A registry of that many names with numbers of their own; the files are laid down without the syncs of put()."""
    for i in range(num):
        path = folder / f"adapters/customer-{i // 100:03}/task-{i:05}/1.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_bytes(encode(replace(adapter, flat=torch.randn(adapter.num_params)), dtype))
    return Registry(folder)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show_sizes(adapter: Adapter) -> None:
    adapter = replace(adapter, flat=torch.randn(adapter.num_params))
    trained = 4 * adapter.num_params
    for dtype in STORED_DTYPES:
        data = encode(adapter, dtype)
        header, error = read_header(data), read_header(data).own.error
        around = len(data) - header.index.data_bytes
        lost = f", relative error {error.relative_l2:.1e}" if error else ", exact"
        print(f"{dtype:>8}: {len(data):,} bytes, {around:,} of them header = {around / trained:.2%} of trained{lost}")


def show_puts(adapter: Adapter, folder: Path) -> None:
    registry = Registry(folder)
    times = sorted(seconds(lambda: registry.put("a", adapter)) for _ in range(NUM_PUTS))
    print(f"put: median {1e3 * median(times):.2f} ms, p99 {1e3 * times[int(0.99 * NUM_PUTS)]:.2f} ms, synced to disk")


def show_gets(registry: Registry, refs: list[AdapterRef]) -> None:
    asked = [str(refs[i * 7919 % len(refs)]) for i in range(NUM_GETS)]
    start = time.process_time()
    times = sorted(seconds(lambda name=name: registry.get(name)) for name in asked)
    used = (time.process_time() - start) / NUM_GETS
    p99 = times[int(0.99 * NUM_GETS)]
    print(f"get: median {1e3 * median(times):.2f} ms, p99 {1e3 * p99:.2f} ms, {1e3 * used:.2f} of processor (bar: 5)")


@dataclass(frozen=True)
class Reading:
    """Ways of reading the same files: as bytes, raw into one buffer or the bank's memory, hashed too, and loaded."""

    registry: Registry
    refs: list[AdapterRef]
    bank: Bank

    def as_bytes(self) -> None:
        """Every file as a bytes object of its own."""
        for ref in self.refs:
            Path(ref.path).read_bytes()

    def raw(self) -> None:
        """Every file into the same buffer."""
        buffer = bytearray(max(ref.num_bytes for ref in self.refs))
        for ref in self.refs:
            with Path(ref.path).open("rb", buffering=0) as file:
                file.readinto(buffer)

    def raw_to_rows(self) -> None:
        """Every file into memory of its own, the rows of the bank."""
        rows = self.bank.flat.numpy()
        for row, ref in zip(rows, self.refs):
            with Path(ref.path).open("rb", buffering=0) as file:
                file.readinto(row)

    def raw_hashed(self) -> None:
        """Every file into the same buffer, and its sha256: the least that a checked read can be."""
        buffer = memoryview(bytearray(max(ref.num_bytes for ref in self.refs)))
        for ref in self.refs:
            with Path(ref.path).open("rb", buffering=0) as file:
                num_bytes = file.readinto(buffer)
            hashlib.sha256(buffer[:num_bytes]).digest()

    def load(self, num_threads: int) -> None:
        """Every adapter checked and in its slot, which was empty but whose memory was there."""
        self.bank.occupied.clear()
        self.registry.files.num_threads = num_threads
        self.registry.load_into(self.bank, self.refs)

    def ways(self) -> dict[str, Callable[[], None]]:
        """All of them by name."""
        loads = {f"load_into, {n} thread{'s' * (n > 1)}": lambda n=n: self.load(n) for n in (1, 2)}
        plain = {
            "raw, read_bytes()": self.as_bytes,
            "raw, one buffer": self.raw,
            "raw, into rows": self.raw_to_rows,
            "raw + sha256": self.raw_hashed,
        }
        return plain | loads


def show_loads(reading: Reading, num_rounds: int) -> None:
    ways = reading.ways()
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds + 1):  # the first warms the page cache
        for name, work in ways.items():
            start = time.process_time()
            wall[name].append(seconds(work))
            cpu[name].append(time.process_time() - start)
    num, num_bytes = len(reading.refs), sum(ref.num_bytes for ref in reading.refs)
    raw, buffer = (median(wall[way][1:]) for way in ("raw, read_bytes()", "raw, one buffer"))
    for name in ways:
        took, used = median(wall[name][1:]), median(cpu[name][1:])
        print(
            f"{name:>22}: {took:6.2f} s, {num_bytes / took / 1e9:5.2f} GB/s, {1e6 * took / num:5.0f} µs an adapter "
            f"({1e6 * used / num:.0f} µs of processor), {raw / took:.2f} of read_bytes()'s speed, "
            f"{buffer / took:.2f} of one buffer's"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="kept and used again; by default a temporary one")
    parser.add_argument("--stored", default="float32", choices=list(STORED_DTYPES))
    asked = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary) / "many"
        model = smollm2()
        adapter = first_adapter(model)
        show_sizes(adapter)
        show_puts(adapter, Path(temporary) / "puts")
        registry = filled(folder, adapter, asked.num, asked.stored)
        refs = registry.list()
        took = median(seconds(registry.list) for _ in range(asked.rounds))
        print(f"list: {took:.2f} s for {len(refs):,} adapters (bar: 1 s)")
        show_gets(registry, refs)
        bank = add_bank(model, adapter.layout, len(refs), adapter.basis())
        show_loads(Reading(registry, refs, bank), asked.rounds)


if __name__ == "__main__":
    main()
