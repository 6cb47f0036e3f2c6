"""Prints how many threads that are not Python's a process has, before an engine answers and beside it."""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tiny_serve import make_adapter, make_llama, make_tokenizer, publish

from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import SamplingParams
from polyvera.engine.openmp import guest

THREADS, WIDE = 3, 512


def product() -> None:
    """Large enough for torch to share it out."""
    torch.ones(WIDE, WIDE) @ torch.ones(WIDE, WIDE)


def workers() -> int:
    """The process's threads without Python's own."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


def main() -> None:
    """Four counts: after a product, while the engine runs, after a guest's product beside it, after another's."""
    torch.set_num_threads(THREADS)
    tokenizer, model = make_tokenizer(), make_llama(width=256)
    with tempfile.TemporaryDirectory() as folder:
        registry, refs = publish(
            Path(folder), [make_adapter(model, AdapterSpec(method="dora", targets="all-linear"), 0)]
        )
        product()
        print(workers())
        with Generator(model, tokenizer, registry) as engine, ThreadPoolExecutor(1) as pool:
            engine.answer([5] * 100, refs[0], SamplingParams(max_tokens=4)).result(60)
            print(workers())
            pool.submit(guest()(product)).result()
            print(workers())
            pool.submit(product).result()
            print(workers())


if __name__ == "__main__":
    main()
