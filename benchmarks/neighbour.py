"""A tenant's time to its first token beside a polite neighbour and beside a hostile one, on one server with keys.

    python benchmarks/neighbour.py [--model smollm2] [--seconds 60] [--only generate embed]

The tenant sends ordinary streamed chats, one after the other with a pause. Its neighbour has 8 connections: first of
chats like these, then of the most that its key may ask for: n and logprobs at their bounds, prompts as long as the
context, echoed with their log-probabilities, the largest schemas, grammars, tools, biases, stop strings and batches,
texts that no context holds, uploads and loads of damaged files. Prints both p99s and their ratio (bar: 2).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from server_process import ServerProcess, cut, serving

from polyvera.server.api_keys import KeyFile

CONNECTIONS, GIVE_UP_S, WARM_UP_S, PAUSE_S = 8, 15.0, 3.0, 0.1
CONTEXT, NEAR, FAR = 4096, "near", "far"
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
QUESTIONS = (
    "What is the capital of France, and how many people live there?",
    "Write a short note to a colleague who is ill and cannot come to the meeting tomorrow morning.",
    "Explain in two sentences why the sky is blue.",
    "My order has not arrived yet. It should have been here on Monday. What can I do about it?",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the neighbour."""

    method: str
    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Tenants:
    """keys: one of each of the two."""

    server: ServerProcess
    keys: dict[str, str]


def asked(path: str, **body: Any) -> Asked:
    """A request with a body of JSON."""
    return Asked("POST", path, json.dumps({"model": "base", **body}).encode())


def chat(text: str, num_tokens: int) -> Asked:
    """An ordinary chat."""
    messages = [{"role": "user", "content": text}]
    return asked(CHAT, messages=messages, max_tokens=num_tokens, stream=True, ignore_eos=True)


EMBEDDED = [asked(VECTORS, input=text) for text in QUESTIONS]
POLITE = {"generate": [chat(text, 32) for text in QUESTIONS], "embed": EMBEDDED}
OWN = {"generate": [chat(text, 2) for text in QUESTIONS], "embed": EMBEDDED}  # what comes after the first is not timed


def widest() -> list[Asked]:
    """Many answers at once, each with all that its sampler can do."""
    bias = {str(1000 + i): 0.001 for i in range(1024)}
    sampled: dict[str, Any] = {
        "n": 64,
        "max_tokens": CONTEXT // 2,
        "ignore_eos": True,
        "temperature": 1.5,
        "top_p": 0.99,
    }
    sampled |= {"repetition_penalty": 1.01, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": bias}
    sampled |= {"stop": [f"{i:02}" + "xyz" * 84 for i in range(16)], "stop_token_ids": list(range(100, 356))}
    return [
        asked(TEXT, prompt="Once upon a time", logprobs=20, min_tokens=1000, **sampled),
        asked(TEXT, prompt="Once upon a time", logprobs=20, stream=True, **sampled),
        asked(TEXT, prompt=[100] * (CONTEXT - 64), n=64, max_tokens=64, ignore_eos=True),
    ]


def longest() -> list[Asked]:
    """Prompts as long as the context or longer, whole conversations of them."""
    numbers = np.random.RandomState(0).randint(100, 9000, (40, CONTEXT - 64)).tolist()
    most = (1 << 20) - 300
    return [
        asked(TEXT, prompt=numbers, echo=True, logprobs=20, max_tokens=0),
        asked(TEXT, prompt=numbers, max_tokens=1),
        asked(TEXT, prompt="word " * (CONTEXT * 20), max_tokens=1),
        asked(TEXT, prompt=" \n" * (CONTEXT * 60), max_tokens=1),
        asked(TEXT, prompt=["a b " * 1000] * 64, max_tokens=1),
        asked(CHAT, messages=[{"role": "user", "content": "a <|im_end|> "}] * 4000, max_tokens=1),
        asked("/tokenize", prompt="é<|im_start|>" * (CONTEXT * 9)),
        asked("/detokenize", tokens=[100] * CONTEXT),
        Asked("POST", TEXT, b"[" * most),
        Asked("POST", TEXT, b'{"model": "base", "prompt": [' + b"1," * (most // 2) + b"1]}"),
    ]


def formed() -> list[Asked]:
    """The largest schemas and grammars, and tools with such."""
    text = {"type": "string", "maxLength": 1000, "pattern": "^[a-z]{1,50}[0-9]{1,50}$"}
    flat = {"type": "object", "properties": {f"key{i}": text for i in range(500)}}
    heavy = {"allOf": [{"type": "string", "pattern": f".*x{i}.*y"} for i in range(20)]}
    form = lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}  # noqa: E731
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "description": "d" * 80, "parameters": flat_tool(i)}}
        for i in range(128)
    ]
    say: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it"}], "max_tokens": 1000, "n": 64}
    choice = [f"{i:04}" + "ab" * 28 for i in range(1000)]
    return [
        asked(CHAT, response_format=form(flat), **say),
        asked(CHAT, response_format=form(heavy), **say),
        asked(CHAT, tools=tools, tool_choice="required", parallel_tool_calls=True, **say),
        asked(CHAT, tools=tools, **say),
        asked(TEXT, prompt="a", n=64, max_tokens=500, structured_outputs={"regex": "(a|b|[0-9]{2,300}){1,900}"}),
        asked(TEXT, prompt="a", n=64, max_tokens=500, structured_outputs={"choice": choice}),
        asked(TEXT, prompt="a", n=64, max_tokens=500, structured_outputs={"grammar": 'start: (start start | "a")*'}),
    ]


def flat_tool(number: int) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    one = {"type": "string", "maxLength": 500}
    return {"type": "object", "properties": {f"a{number}_{i}": one for i in range(4)}}


def stored(folder: Path) -> list[Asked]:
    """Uploads of what is no adapter, loads of such a folder, and lists."""
    root = folder / "far"
    root.mkdir()
    (root / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": "(.*q_proj)+" * 500}))
    (root / "adapter_model.safetensors").write_bytes((1 << 24).to_bytes(8, "little") + b"{" * (1 << 24))
    header = (99_000_000).to_bytes(8, "little")
    return [
        Asked("PUT", "/v1/adapters/far/new", header + b"{" * ((64 << 20) - 8)),
        Asked("PUT", "/v1/adapters/far/new", (8).to_bytes(8, "little") + b"{}      " + bytes(64 << 19)),
        asked("/v1/load_lora_adapter", lora_name="far/new", lora_path="far"),
        Asked("GET", "/v1/adapters?search=a+b+c&limit=1000", b""),
    ]


def batches() -> list[Asked]:
    """For an encoder."""
    tokens = np.random.RandomState(0).randint(1000, 9000, (400, 500)).tolist()
    return [
        asked(VECTORS, input=["a b c d"] * 2048),
        asked(VECTORS, input=["word " * 500] * 200),
        asked(VECTORS, input=tokens, encoding_format="base64"),
        asked(VECTORS, input="é" * 60_000),
        asked("/v1/rerank", query="word " * 100, documents=["word " * 100] * 1024),
        asked("/v1/score", text_1=["a b c"] * 1024, text_2=["word " * 50] * 1024),
    ]


def neighbour(url: str, key: str, requests: Sequence[Asked], told: Connection) -> None:
    """CONNECTIONS that ask until they are told to end, each from another place of the list on; tells how all ended."""
    os.nice(10)  # it has a machine of its own elsewhere
    counts: Counter[str] = Counter()

    async def connection(number: int) -> None:
        own = itertools.islice(itertools.cycle(requests), number * len(requests) // CONNECTIONS, None)
        async with httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=GIVE_UP_S) as http:
            for one in own:
                counts[await _ended(http, one)] += 1

    async def until_told() -> None:
        tasks = [asyncio.create_task(connection(i)) for i in range(CONNECTIONS)]
        while not told.poll():
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()

    asyncio.run(until_told())
    told.send(dict(counts))


async def _ended(http: httpx.AsyncClient, one: Asked) -> str:
    """How a request ended; given up after GIVE_UP_S, whatever comes."""
    try:
        async with asyncio.timeout(GIVE_UP_S), http.stream(one.method, one.path, content=one.content) as answer:
            async for _ in answer.aiter_raw():
                pass
            return str(answer.status_code)
    except TimeoutError:
        return "given up"
    except httpx.HTTPError as error:
        return type(error).__name__


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def first_token_s(http: httpx.Client, one: Asked) -> float:
    """Seconds until the first text, or until the vector, of a request."""
    started, found = time.monotonic(), 0.0
    with http.stream(one.method, one.path, content=one.content) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            found = found or (time.monotonic() - started if _is_first(line) else 0.0)
    return found


def _is_first(line: str) -> bool:
    if not line.startswith("data: {"):
        return '"embedding"' in line
    return any(choice["delta"].get("content") for choice in json.loads(line[6:])["choices"])


def waits(url: str, key: str, own: Sequence[Asked], seconds: float) -> list[float]:
    """The tenant's times to the first token."""
    found, end = [], time.monotonic() + seconds
    with httpx.Client(base_url=url, headers=_headers(key), timeout=120) as http:
        for one in itertools.cycle(own):
            if time.monotonic() > end:
                return found
            found.append(first_token_s(http, one))
            time.sleep(PAUSE_S)
    return found


def beside(at: Tenants, own: Sequence[Asked], other: Sequence[Asked], seconds: float) -> list[float]:
    """The tenant's times while its neighbour asks for something; prints how that ended."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=neighbour, args=(at.server.url, at.keys[FAR], other, there))
    process.start()
    time.sleep(WARM_UP_S)
    found = waits(at.server.url, at.keys[NEAR], own, seconds)
    here.send("end")
    print(f"  {len(found)} of its own; the neighbour's: {here.recv()}; {at.server.held()}", flush=True)
    process.join()
    return found


@contextmanager
def tenants(kind: str, model: str, folder: Path, args: argparse.Namespace) -> Iterator[Tenants]:
    """Two of them on a server."""
    keys = KeyFile(folder / "keys.json")
    secrets = {name: keys.add(name, [f"{name}/*"], base=True, admin=True)[0] for name in (NEAR, FAR)}
    if args.layers:
        cut(model, args.layers, folder / "model")
        model = str(folder / "model")
    flags = (f"--keys={folder / 'keys.json'}", f"--lora-root={folder}", "--name=base-model", *args.flags)
    with serving(model, folder, *flags) as server:
        yield Tenants(server, secrets)


def compare(kind: str, model: str, args: argparse.Namespace) -> None:
    """Prints the p99s beside the polite and beside the hostile neighbour."""
    with tempfile.TemporaryDirectory() as root, tenants(kind, model, folder := Path(root), args) as at:
        kinds = HOSTILE if kind == "generate" else {"batches": batches}
        every = {name: make() for name, make in kinds.items()} | {"stored": stored(folder)}
        every = {name: several for name, several in every.items() if name in (args.kinds or every)}
        cases = {"all": [one for several in every.values() for one in several]}
        if args.each:
            cases |= {f"{name} {i}": [one] for name, several in every.items() for i, one in enumerate(several)}
        waits(at.server.url, at.keys[NEAR], OWN[kind], WARM_UP_S)
        polite = told(kind, "polite", beside(at, OWN[kind], POLITE[kind], args.seconds))
        for name, requests in cases.items():
            seconds = args.seconds if name == "all" else args.each
            hostile = told(kind, name, beside(at, OWN[kind], requests, seconds))
            print(f"{kind}: {name}: p99 {hostile / polite:.2f} x", flush=True)
        print(f"{len(at.server.errors())} errors in its log", *at.server.errors()[:5], sep="\n")


def told(kind: str, name: str, found: Sequence[float]) -> float:
    """The p99, which is printed."""
    middle, p99 = np.quantile(found, (0.5, 0.99))
    print(f"{kind}: {name}: first token {1000 * middle:.0f} ms, p99 {1000 * p99:.0f} ms", flush=True)
    return float(p99)


HOSTILE = {"widest": widest, "longest": longest, "formed": formed}


def main() -> None:
    """Prints the p99s of each kind of server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, default=["smollm2", "minilm"], metavar=("GENERATE", "EMBED"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", choices=list(POLITE), default=list(POLITE))
    parser.add_argument("--kinds", nargs="+", help="of hostile requests: widest, longest, formed, stored, batches")
    parser.add_argument("--layers", type=int, default=0, help="only the base's first layers")
    parser.add_argument("--each", type=float, default=0.0, help="then each hostile request alone, for so many seconds")
    parser.add_argument("--flags", nargs="*", default=[], help="of polyvera serve, such as --flags=--replicas=1")
    args = parser.parse_args()
    for kind, model in zip(POLITE, args.models, strict=True):
        if kind in args.only:
            compare(kind, model, args)


if __name__ == "__main__":
    main()
