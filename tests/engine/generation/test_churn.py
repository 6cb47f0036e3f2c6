"""Many requests over many adapters while these are published, moved and removed: every answer right, nothing left."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from many_requests import NO_CACHES, ROUNDS
from tiny_serve import Heard, Solo, assert_nothing_is_left, make_adapter, make_prompt, submit
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.method import METHODS
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.generation.generator import Generator
from polyvera.engine.generation.request import CANCELLED, FAILED, LENGTH, STOP, Request, SamplingParams
from polyvera.engine.limits import Limits
from polyvera.errors import NotFoundError
from polyvera.store.registry import Registry

NUM_ADAPTERS, NUM_REQUESTS, LONGEST = 64, 500, 16
PROMPTS = [make_prompt(seed, 1, 90) for seed in range(8)]
TENANTS = ("", "a", "b")


@dataclass
class Asked:
    """A request, and what must come of it."""

    request: Request
    heard: Heard
    adapter: Adapter | None
    num: int
    is_cancelled: bool = False


def spec_of(index: int) -> AdapterSpec:
    """All rows of the table, several ranks, targets and bases."""
    rows = list(METHODS)
    targets: list[str | tuple[str, ...]] = ["default", "all-linear", ("o_proj", "up_proj")]
    return AdapterSpec(rows[index % len(rows)], rank=2 + index % 3, targets=targets[index % 3], seed=index % 2)


class Fleet:
    """Names with versions that come and go, and the alias that every request asks for."""

    def __init__(self, model: LlamaForCausalLM, root: Path) -> None:
        self.registry, self._model, self._seed = Registry(root), model, 0
        self._live: dict[str, dict[int, Adapter]] = {}
        for index in range(NUM_ADAPTERS):
            self.publish(index)

    def publish(self, index: int) -> None:
        """A new version; the alias moves to it."""
        name, self._seed = f"team/a{index}", self._seed + 1
        adapter = make_adapter(self._model, spec_of(index), self._seed)
        ref = self.registry.put(name, adapter, alias="prod")
        self._live.setdefault(name, {})[ref.version] = adapter

    def move_back(self, index: int) -> None:
        """The alias points to the oldest version that is there."""
        name = f"team/a{index}"
        self.registry.alias(name, "prod", min(self._live[name]))

    def remove(self, index: int, engine: Generator) -> None:
        """The oldest version goes, resident or not."""
        name = f"team/a{index}"
        version = min(self._live[name])
        if len(self._live[name]) > 1 and self.registry.aliases(name)["prod"] != version:
            ref = self.registry.resolve(f"{name}@{version}")
            self.registry.remove(ref)
            engine.evict(ref)
            del self._live[name][version]
            with pytest.raises(NotFoundError):
                self.registry.resolve(f"{name}@{version}")

    def resolved(self, index: int) -> tuple[Any, Adapter]:
        ref = self.registry.resolve(f"team/a{index}@prod")
        return ref, self._live[ref.name][ref.version]


def churned(engine: Generator, fleet: Fleet, draw: random.Random) -> Iterator[Asked]:
    """Requests that arrive in bursts, between which adapters change and some requests are cancelled."""
    recent: list[Asked] = []
    for number in range(NUM_REQUESTS):
        index = min(int(draw.paretovariate(0.6)) - 1, NUM_ADAPTERS)
        ref, adapter = (None, None) if index == NUM_ADAPTERS else fleet.resolved(index)
        num = draw.randint(1, LONGEST)
        request, heard = submit(
            engine, draw.choice(PROMPTS), ref, SamplingParams(max_tokens=num), tenant=draw.choice(TENANTS)
        )
        recent.append(Asked(request, heard, adapter, num))
        yield recent[-1]
        if number % 7 == 3:
            fleet.publish(draw.randrange(8))
        if number % 7 == 5:
            fleet.move_back(draw.randrange(8))
        if number % 5 == 1:
            fleet.remove(draw.randrange(8), engine)
        if draw.random() < 0.2:
            gone = draw.choice(recent[-20:])
            gone.is_cancelled = True
            engine.cancel(gone.request)
        if draw.random() < 0.05:
            Event().wait(draw.random() * 0.1)


def checked(asked: Asked, solo: Solo) -> str:
    """How a request ended, its answer compared with what its adapter answers alone."""
    end = asked.heard.wait()
    if isinstance(end.error, NotFoundError):  # its version was removed before it was read
        assert end.finish_reason == FAILED and not asked.heard.ids
        return FAILED
    expected = solo.answers(asked.adapter, asked.request.prompt, LONGEST)[: asked.num]
    if end.finish_reason == CANCELLED:
        assert asked.is_cancelled and asked.heard.ids == expected[: len(asked.heard.ids)]
    else:
        assert end.error is None and asked.heard.ids == expected
        assert end.finish_reason == (STOP if expected[-1] in (1, 95, 127, 157) else LENGTH)
    return str(end.finish_reason)


def test_five_hundred_requests_over_sixty_four_adapters_that_come_and_go(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, solo: Solo, tmp_path: Path
) -> None:
    fleet = Fleet(copy_of(llama), tmp_path)
    limits = Limits(max_rows=12, chunk=24, num_slots=10, host_bytes=200_000, prefix_bytes=400_000)
    with Generator(llama, tokenizer, fleet.registry, limits) as engine:
        asked = list(churned(engine, fleet, random.Random(1)))
        ends = [checked(one, solo) for one in asked]
        assert_nothing_is_left(engine)
        totals = engine.stats().totals
        assert totals["evictions"] > 30 and totals["reused_tokens"] > 0 and len(engine.stats().resident) <= 10
        assert ends.count(CANCELLED) > 20 and ends.count(LENGTH) + ends.count(STOP) > 200
        for ref in fleet.registry.list():
            engine.evict(ref)
        engine.preload(fleet.resolved(0)[0])
        assert len(engine.stats().resident) == 1 and sum(len(b.occupied) for b in engine._adapters.banks) == 1


def copy_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model, for adapters to be made in while an engine holds the other."""
    return type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict()).eval()


def test_memory_is_flat_over_ten_thousand_requests() -> None:
    script = Path(__file__).with_name("many_requests.py")
    command, environment = (
        [sys.executable, str(script)],
        {**os.environ, **NO_CACHES, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    objects, num_bytes = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert len(objects) == ROUNDS
    assert objects[-1] - objects[2] < 300, "of thousands of requests, something is kept of each"
    assert num_bytes[-1] - num_bytes[2] < 2 << 20
