"""One engine with all threads against replicas with a share of them each: tokens a second of the same requests.

    python benchmarks/replicas.py smollm2 --threads 2 --replicas 2 --rows 16 --tokens 32

Each is measured --rounds times, in turns, after a round that warms it up; all answers are compared.
"""

from __future__ import annotations

import argparse
from threading import Event
from time import monotonic
from typing import Any

import torch

from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import Request, RequestOutput, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.model.load import load_base
from polyvera.replicas.replica_pool import ReplicaPool

PROMPT_TOKENS = 32


def answers(engine: Any, num_rows: int, num_tokens: int) -> list[list[int]]:
    """The answers of so many requests at once, each with a prompt of its own."""
    ends = [Event() for _ in range(num_rows)]
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)

    def asked(row: int) -> Any:
        def on_output(output: RequestOutput) -> None:
            if output.finish_reason is not None:
                ends[row].set()

        return engine.submit(Request([1000 + 7 * row + i for i in range(PROMPT_TOKENS)], None, params, on_output))

    requests = [asked(row) for row in range(num_rows)]
    for end in ends:
        end.wait()
    return [request.answer for request in requests]


def main() -> None:
    """Prints the best and the median round of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for flag, default in (("threads", 2), ("replicas", 2), ("rows", 16), ("tokens", 32), ("rounds", 5)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limits, base = Limits(max_rows=args.rows, max_context=512, prefix_bytes=0), load_base(args.model)
    with (
        Generator(base.model, base.tokenizer, None, limits) as one,
        ReplicaPool(args.model, None, limits, num=args.replicas) as several,
    ):
        engines, seconds = {"one engine": one, f"{args.replicas} replicas": several}, {}
        expected = [answers(engine, args.rows, args.tokens) for engine in engines.values()]
        print(f"the same answers: {expected[0] == expected[1]}")
        for _ in range(args.rounds):
            for name, engine in engines.items():
                started = monotonic()
                answers(engine, args.rows, args.tokens)
                seconds.setdefault(name, []).append(monotonic() - started)
    for name, found in seconds.items():
        best, median = (args.rows * args.tokens / s for s in (min(found), sorted(found)[len(found) // 2]))
        print(f"{name}: {best:.1f} tokens a second at best, {median:.1f} in the median of {args.rounds}")


if __name__ == "__main__":
    main()
