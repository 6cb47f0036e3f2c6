"""vLLM with polyvera's plugin: throughput by the number of different adapters in a batch, and memory for each slot.

    scripts/test-vllm --setup
    .venv-vllm/bin/python benchmarks/vllm_batch.py [--rows 16] [--tokens 32] [--repeats 5] [--rank 256] [--eager]

Engines, each in a process of its own, all alive at the same time and asked in turns, so that other load meets all
alike: without LoRA, and with the plugin for VeRA on the query and value projections and on all linear layers. Each is
asked with 0, 1, 8 and 16 different adapters among the rows. The figures are tokens a second, the median of the
repeats, and ratios to the engine without adapters of the same round. The engines compile the model, which is what vLLM
does unless told otherwise and takes minutes at each start on a CPU; with --eager none does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from polyvera.adapter.adapter import adapter_from
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.load import locate
from polyvera.model.shapes import model_shapes
from polyvera.plan import cost
from polyvera.store.registry import Registry

TARGETS = {
    "q, v": ("q_proj", "v_proj"),
    "all linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
DISTINCT = (0, 1, 8, 16)
WITHOUT = "no adapters"
PROMPT = list(range(100, 116))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 16), ("tokens", 32), ("repeats", 5), ("rank", 256), ("slots", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--eager", action="store_true")
    return parser.parse_args()


def publish(store: Path, spec: AdapterSpec, shapes: Mapping[str, tuple[int, int]]) -> None:
    for seed in range(max(DISTINCT)):
        stream = torch.Generator().manual_seed(seed)
        d = {f"{s}.d": 0.1 * torch.randn(spec.rank or 0, generator=stream) for s in shapes}
        b = {f"{s}.b": 0.1 * torch.randn(o, generator=stream) for s, (_, o) in shapes.items()}
        Registry(store).put(f"a{seed}", adapter_from(spec, shapes, {**d, **b}))


def serve(pipe: Connection, model: str, targets: list[str], store: str, options: dict[str, int]) -> None:
    """One engine: answers (number of different adapters) with (tokens a second, bytes of a slot)."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", POLYVERA_STORE=store, POLYVERA_RANK=str(options["rank"]))
    os.environ.update(POLYVERA_METHODS="vera", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_NUM_OF_RESERVED_CPU="0")
    from vllm import LLM

    lora = {"enable_lora": True, "max_loras": options["slots"], "lora_target_modules": targets} if targets else {}
    sizes = {"max_model_len": 256, "max_num_seqs": options["rows"]}
    kind = {"dtype": "float32", "enforce_eager": bool(options["eager"])}
    engine = LLM(model, **kind, disable_log_stats=True, enable_prefix_caching=False, **sizes, **lora)
    pipe.send(slot_bytes(engine) if targets else 0)
    while (distinct := pipe.recv()) is not None:
        pipe.send(speed(engine, distinct, options))


def slot_bytes(engine: Any) -> int:
    from polyvera.vllm.layers import WithVectors

    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    layers = runner.lora_manager._adapter_manager.modules.values()
    return sum(layer.slots.slot_bytes for layer in layers if isinstance(layer, WithVectors))


def speed(engine: Any, distinct: int, options: dict[str, int]) -> float:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    rows = options["rows"]
    adapters = [f"a{i % distinct}" if distinct else None for i in range(rows)]
    requests = [a and LoRARequest(a, int(a[1:]) + 1, f"polyvera://{a}@1") for a in adapters]
    params = SamplingParams(temperature=0, max_tokens=options["tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": [i + 1, *PROMPT]} for i in range(rows)]
    began = time.perf_counter()
    engine.generate(prompts, params, lora_request=requests if distinct else None, use_tqdm=False)
    return rows * options["tokens"] / (time.perf_counter() - began)


def start(model: str, targets: tuple[str, ...], store: Path, options: dict[str, int]) -> tuple[Connection, int]:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=serve, args=(there, model, list(targets), str(store), options), daemon=True).start()
    return here, here.recv()


def ask(pipe: Connection, distinct: int) -> float:
    pipe.send(distinct)
    return float(pipe.recv())


def main() -> None:
    args = arguments()
    model = locate(args.model)
    options = {k: getattr(args, k) for k in ("rows", "tokens", "rank", "slots", "eager")}
    with tempfile.TemporaryDirectory() as folder:
        engines, planned = {WITHOUT: start(model, (), Path(folder), options)}, {}
        for name, targets in TARGETS.items():
            spec = AdapterSpec(rank=args.rank, targets=targets)
            shapes = model_shapes(model, spec)
            publish(Path(folder) / name, spec, shapes.sites)
            planned[name] = cost(spec, shapes.sites, shapes.num_params).slot_bytes
            engines[name] = start(model, targets, Path(folder) / name, options)
        report(engines, planned, args.repeats)
        for pipe, _ in engines.values():
            pipe.send(None)


def report(engines: dict[str, tuple[Connection, int]], planned: dict[str, int], repeats: int) -> None:
    asked = [(WITHOUT, 0), *((name, n) for name in TARGETS for n in DISTINCT)]
    for name, distinct in asked:  # warm-up, and the adapters' loading
        ask(engines[name][0], distinct)
    rounds = [{key: ask(engines[key[0]][0], key[1]) for key in asked} for _ in range(repeats)]
    print(f"{'layers':<12} {'adapters':>8} {'tokens/s':>9} {'ratio':>6}")
    for key in asked:
        ratio = median(one[key] / one[WITHOUT, 0] for one in rounds)
        print(f"{key[0]:<12} {key[1]:>8} {median(one[key] for one in rounds):>9.1f} {ratio:>6.2f}")
    for name in TARGETS:
        speeds = [median(one[name, n] / one[WITHOUT, 0] for one in rounds) for n in DISTINCT[1:]]
        print(f"{name}: 1 to 16 different adapters within {100 * (1 - min(speeds) / max(speeds)):.1f} % of the fastest")
        print(f"{name}: {engines[name][1]} bytes a slot, planned {planned[name]}")


if __name__ == "__main__":
    main()
