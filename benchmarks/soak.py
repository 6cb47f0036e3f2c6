"""A server under everything at once: are its answers right, and is what it holds flat?

    python benchmarks/soak.py [--requests 10000] [--model smollm2] [--layers 2]

16 clients ask a server of the base's first layers for greedy answers: completions, chats, tools, schemas, several at
once, whole and streamed. Some leave in the middle. Meanwhile adapters are published, removed, unloaded, aliases move,
and more adapters are in use than there are slots. Every answer is compared with what transformers' generate() said
before, of the version that the answer names; tools and schemas with what the server itself said of them alone. Prints
the counts, and the server's memory, descriptors and threads as it goes on. Exit status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from server_process import ServerProcess, cut, serving

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import eject, extract, inject, load
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.load import Base
from polyvera.model.prompt import Message, chat_ids, prompt_ids
from polyvera.store.file.codec import encode

CLIENTS, NUM_ADAPTERS, NUM_NAMES, NUM_TOKENS, NUM_REPORTS = 16, 6, 12, 10, 20
MARGIN = 1e-3  # of the likeliest token over the next: a batch's rounding moves none that has so much
TEXTS = [f"{who} {what}" for who in ("The old man", "My sister", "A dog") for what in ("went to", "said that", "has")]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["ok", "n"],
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
FORMED: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "tool": {"tools": [TOOL], "tool_choice": "required"},
    "choice": {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
}
FLAGS = ("--slots=8", "--max-rows=16", "--max-context=512", "--prefix-mib=16")
Table = dict[tuple[int, str, str], str]


@dataclass
class World:
    """What was published. adapters: which of the files each version is. open_names: those not unloaded."""

    at: ServerProcess
    table: Table
    files: list[bytes]
    adapters: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def made(base: Base, seed: int) -> Adapter:
    """An adapter that changes what the base says."""
    bank = inject(base.model, AdapterSpec(rank=16, seed=0))
    fresh = extract(bank, bank.first, base.model)
    eject(base.model)
    noise = torch.randn(fresh.flat.shape, generator=torch.Generator().manual_seed(seed))
    return Adapter(fresh.spec, fresh.layout, fresh.flat + 0.3 * noise, fresh.basis_sha256, None, fresh.base)


def told_before(base: Base, adapters: list[Adapter]) -> Table:
    """What generate() says, of those prompts whose answers are far from any other."""
    found: Table = {}
    for number, adapter in enumerate(adapters):
        load(base.model, adapter)
        for text in TEXTS:
            for kind, ids in (("text", prompt_ids(base.tokenizer, text)), ("chat", _chat(base, text))):
                answer = _generated(base, ids)
                if answer is not None:
                    found[number, kind, text] = answer
        eject(base.model)
    return found


def _chat(base: Base, text: str) -> list[int]:
    return chat_ids(base.tokenizer, (Message("user", text),))


def _generated(base: Base, ids: list[int]) -> str | None:
    model: Any = base.model
    given = torch.tensor([ids])
    ended = {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS, "do_sample": False}
    out = model.generate(
        given, attention_mask=torch.ones_like(given), return_dict_in_generate=True, output_logits=True, **ended
    )
    best = torch.stack(out.logits).float().topk(2, -1).values
    if float((best[..., 0] - best[..., 1]).min()) < MARGIN:
        return None
    return str(base.tokenizer.decode(out.sequences[0, len(ids) :], skip_special_tokens=True))


class Client:
    """One of several: asks for this and that, and looks at what comes."""

    def __init__(self, world: World, http: httpx.AsyncClient, seed: int) -> None:
        self._world, self._http, self._draw = world, http, random.Random(seed)

    async def run(self, num: int) -> None:
        """So many requests."""
        acts = [*[self.answer] * 80, *[self.leave] * 10, *[self.publish] * 4, *[self.move] * 3]
        acts += [*[self.remove] * 2, self.unload]
        for _ in range(num):
            await self._draw.choice(acts)()

    async def answer(self) -> None:
        """A whole or streamed answer of any kind, which must be right."""
        kind = self._draw.choice(("text", "text", "chat", *FORMED))
        body, path = _body(kind, self._draw.choice(TEXTS[:2] if kind in FORMED else TEXTS), self._model())
        body["n"] = self._draw.choice((1, 1, 1, 3))
        if self._draw.random() < 0.3 and kind != "tool":
            await self._streamed(path, body, kind)
            return
        answer = await self._http.post(path, json=body)
        if self._is_there(answer.status_code, body["model"], answer.text):
            told = answer.json()
            for choice in told["choices"]:
                self._check(kind, told["model"], _text_of(body), _said(choice))

    async def _streamed(self, path: str, body: dict[str, Any], kind: str) -> None:
        said, model = [""] * body["n"], ""
        async with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                self._is_there(answer.status_code, body["model"], (await answer.aread()).decode())
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    part = json.loads(line[6:])
                    if "error" in part:
                        self._is_there(404 if part["error"]["code"] == "model_not_found" else 500, body["model"], line)
                        return
                    model = part["model"]
                    for choice in part["choices"]:
                        said[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
        for text in said:
            self._check(kind, model, _text_of(body), text)

    async def leave(self) -> None:
        """Asks for much, and is gone before it comes."""
        kind = self._draw.choice(("text", "chat", "schema"))
        body, path = _body(kind, self._draw.choice(TEXTS), self._model())
        body |= {"max_tokens": 400, "n": 4, "stream": self._draw.random() < 0.7}
        with suppress(TimeoutError):
            async with asyncio.timeout(self._draw.uniform(0.01, 0.3)):
                await self._http.post(path, json=body)
        self._world.ended["left"] += 1

    async def publish(self) -> None:
        """A new version of a name."""
        name, number = self._name(), self._draw.randrange(NUM_ADAPTERS)
        answer = await self._http.put(f"/v1/adapters/{name}?alias=live", content=self._world.files[number])
        self._count("published", answer, 201)
        self._world.adapters[answer.json()["id"]] = number

    async def move(self) -> None:
        """An alias to another version."""
        version = self._draw.choice(list(self._world.adapters))
        name, _, number = version.partition("@")
        body = {"name": name, "alias": "live", "version": int(number)}
        answer = await self._http.post("/v1/aliases", json=body)
        self._count("moved", answer, 200, 404)

    async def remove(self) -> None:
        """A version, with its aliases, though it may be answering."""
        version = self._draw.choice(list(self._world.adapters))
        self._world.removed.add(version)
        answer = await self._http.delete(f"/v1/adapters/{version}?with_aliases=true")
        self._count("removed", answer, 200, 404)

    async def unload(self) -> None:
        """A name that nobody else asks for, and loads it again by publishing."""
        await self._http.put("/v1/adapters/soak/shy", content=self._world.files[0])
        answer = await self._http.post("/v1/unload_lora_adapter", json={"lora_name": "soak/shy"})
        self._count("unloaded", answer, 200, 404)

    def _name(self) -> str:
        return f"soak/n{self._draw.randrange(NUM_NAMES)}"

    def _model(self) -> str:
        how = self._draw.random()
        return self._name() + ("@live" if how < 0.3 else "")

    def _is_there(self, status: int, model: str, text: str) -> bool:
        """Whether an answer came; a name may have been removed."""
        self._world.ended[f"answer {status}"] += 1
        if status not in (200, 404):
            self._world.wrong.append(f"{model}: {status} {text[:200]}")
        return status == 200

    def _count(self, word: str, answer: httpx.Response, *right: int) -> None:
        self._world.ended[f"{word} {answer.status_code}"] += 1
        if answer.status_code not in right:
            self._world.wrong.append(f"{word}: {answer.status_code} {answer.text[:200]}")

    def _check(self, kind: str, model: str, text: str, said: str) -> None:
        number = self._world.adapters.get(model)
        known = None if number is None else self._world.table.get((number, kind, text))
        self._world.ended["right" if known == said else "unknown" if known is None else "wrong"] += 1
        if known is not None and known != said:
            self._world.wrong.append(f"{model} {kind} {text!r}: {said!r} is not {known!r}")


def _body(kind: str, text: str, model: str) -> tuple[dict[str, Any], str]:
    body: dict[str, Any] = {"model": model, "max_tokens": NUM_TOKENS, "temperature": 0}
    if kind == "text":
        return {**body, "prompt": text, "ignore_eos": True}, "/v1/completions"
    messages = [{"role": "user", "content": text}]
    if kind == "chat":
        return {**body, "messages": messages, "ignore_eos": True}, "/v1/chat/completions"
    return {**body, "messages": messages, **FORMED[kind], "max_tokens": 60}, "/v1/chat/completions"


def _text_of(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


def _said(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    calls = choice["message"].get("tool_calls")
    return json.dumps(calls[0]["function"]) if calls else str(choice["message"]["content"])


async def prepared(world: World, http: httpx.AsyncClient) -> None:
    """Every name has a version; what the server alone says of tools and schemas is known."""
    for i in range(NUM_NAMES):
        number = i % NUM_ADAPTERS
        answer = await http.put(f"/v1/adapters/soak/n{i}?alias=live", content=world.files[number])
        world.adapters[answer.raise_for_status().json()["id"]] = number
        for kind in FORMED if i < NUM_ADAPTERS else ():
            for text in TEXTS[:2]:
                body, path = _body(kind, text, f"soak/n{i}")
                told = (await http.post(path, json=body)).raise_for_status().json()
                world.table[number, kind, text] = _said(told["choices"][0])


async def soak(world: World, num: int) -> None:
    """All clients, and what the server holds NUM_REPORTS times."""
    limits = httpx.Limits(max_connections=CLIENTS * 2)
    async with httpx.AsyncClient(base_url=world.at.url, timeout=120, limits=limits) as http:
        await prepared(world, http)
        clients = [Client(world, http, seed) for seed in range(CLIENTS)]
        for part in range(NUM_REPORTS):
            await asyncio.gather(*(client.run(num // NUM_REPORTS // CLIENTS) for client in clients))
            print(f"{(part + 1) * (num // NUM_REPORTS)} requests: {world.at.held()}", flush=True)
        await asyncio.sleep(2)
        live = (await http.get("/v1/live")).json()
        print(f"at the end: {len(live['running'])} rows run, {live['waiting']} wait; {world.at.held()}")


def main() -> None:
    """Prints what was right and what was held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        base = cut(args.model, args.layers, folder / "model")
        adapters = [made(base, seed) for seed in range(NUM_ADAPTERS)]
        table, files = told_before(base, adapters), [encode(adapter) for adapter in adapters]
        with serving(str(folder / "model"), folder, *FLAGS) as at:
            world, started = World(at, table, files), time.monotonic()
            asyncio.run(soak(world, args.requests))
            print(f"{len(at.errors())} errors in its log", *at.errors()[:5], sep="\n")
    print(f"{time.monotonic() - started:.0f} s; {len(table)} of the table;", dict(sorted(world.ended.items())))
    print(f"{len(world.wrong)} wrong", *world.wrong[:10], sep="\n")
    raise SystemExit(bool(world.wrong))


if __name__ == "__main__":
    main()
