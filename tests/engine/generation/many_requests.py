"""Serves ten thousand requests and prints what the process holds after each thousand: objects, bytes of memory.

Run with the caches off that torch's kernels keep for every shape that they have met, up to 1024 of them.
"""

import gc
import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from tiny_serve import assert_nothing_is_left, make_adapter, make_llama, make_tokenizer, publish, until

from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.store.reference import AdapterRef

NO_CACHES = {"LRU_CACHE_CAPACITY": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "MALLOC_ARENA_MAX": "1"}
ROUNDS, SIZE = 10, 1_000


def serve(engine: Generator, refs: Sequence[AdapterRef], draw: random.Random, num: int) -> None:
    """Some requests at once, a tenth of them cancelled; none may fail."""
    failed: list[RequestOutput] = []

    def on_output(output: RequestOutput) -> None:
        if output.error is not None:
            failed.append(output)

    for i in range(num):
        params = SamplingParams(max_tokens=draw.randint(1, 3), temperature=draw.choice([0.0, 1.0]), stop=("xyz",))
        prompt = [draw.randrange(3, 260) for _ in range(draw.randint(1, 40))]
        request = engine.submit(Request(prompt, draw.choice([*refs, None]), params, on_output, str(i % 7)))
        if draw.random() < 0.1:
            engine.cancel(request)
    until(lambda: not engine._core.is_busy)
    assert not failed, failed[0]


def main() -> None:
    torch.set_num_threads(1)
    model, draw = make_llama(layers=1, width=16, context=48), random.Random(0)
    adapters = [make_adapter(model, AdapterSpec(name, rank=2), i) for i, name in enumerate([*METHODS] * 2)]
    limits = Limits(max_rows=32, num_slots=6, prefix_bytes=50_000, max_waiting=SIZE)
    with tempfile.TemporaryDirectory() as folder:
        registry, refs = publish(Path(folder), adapters)
        with Generator(model, make_tokenizer(), registry, limits) as engine:
            for _ in range(ROUNDS):
                serve(engine, refs, draw, SIZE)
                gc.collect()
                held = len(gc.get_objects()), psutil.Process(os.getpid()).memory_info().rss
                print(json.dumps(held), flush=True)
            assert_nothing_is_left(engine)
            assert engine.stats().totals["evictions"] > 100


if __name__ == "__main__":
    main()
