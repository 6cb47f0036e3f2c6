"""A real server on a free port of this machine, in a thread, in front of a tiny engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from openai import OpenAI
from tiny_serve import LONGEST_WAIT, make_adapter, make_llama, make_tokenizer
from transformers import LlamaForCausalLM

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.spec import AdapterSpec
from polyvera.engine.factory import engine_for
from polyvera.engine.limits import Limits
from polyvera.jobs.fine_tuning import FineTuning
from polyvera.model.load import Base
from polyvera.server.address import Address
from polyvera.server.api_keys import KeyFile
from polyvera.server.app import make_app
from polyvera.server.config import ServerConfig
from polyvera.server.metrics import Metrics
from polyvera.server.middleware import ServerState
from polyvera.server.server import Server
from polyvera.store.registry import Registry

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
HELLO = [{"role": "user", "content": "the true thing"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@dataclass(frozen=True)
class Served:
    """A running server and what stands behind it."""

    url: str
    engine: Any
    registry: Registry
    adapters: dict[str, Adapter]
    server: Server
    keys: KeyFile | None

    def http(self, key: str | None = None) -> httpx.Client:
        """A client with that key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=LONGEST_WAIT)

    def openai(self, key: str = "none") -> OpenAI:
        """The official client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=LONGEST_WAIT)


def make_base(context: int = 160) -> LlamaForCausalLM:
    """Ends its answers with </s> alone, not with characters that JSON needs."""
    model = make_llama(context)
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    return model


def some_adapters(model: LlamaForCausalLM) -> dict[str, Adapter]:
    """Two tenants' adapters."""
    names = ("acme/one", "acme/two", "globex/secret")
    return {name: make_adapter(model, AdapterSpec(rank=4), seed) for seed, name in enumerate(names)}


@contextmanager
def served(root: Path, limits: Limits | None = None, *, with_keys: bool = False, **settings: Any) -> Iterator[Served]:
    """Serves text until the context is left; fails where the server does not end."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = make_base()
    with fronted(root, Base(model, tokenizer), some_adapters(model), limits, with_keys=with_keys, **settings) as found:
        yield found


@contextmanager
def fronted(
    root: Path,
    base: Base,
    adapters: dict[str, Adapter],
    limits: Limits | None = None,
    *,
    with_keys: bool = False,
    fine_tuning: FineTuning | None = None,
    address: Address | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """The same for any base and adapters. fine_tuning: of a server that trains."""
    registry = Registry(root / "store")
    for name, adapter in adapters.items():
        registry.put(name, adapter)
    keys = None
    if with_keys:
        settings["keys"] = root / "keys.json"
        keys = KeyFile(settings["keys"])
        keys.add("nobody", ["nobody/*"])
    chosen, metrics, state = ServerConfig(base="tiny", **settings), Metrics(), ServerState()
    with engine_for(base, registry, limits or Limits(max_rows=8), metrics.observe) as engine:
        app = make_app(engine, chosen, metrics, state, fine_tuning=fine_tuning)
        server = Server(app, engine, chosen, state, address or Address(port=0))
        thread = Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield Served(server.url, engine, registry, adapters, server, keys)
        finally:
            server.stop()
            thread.join(LONGEST_WAIT)
            assert not thread.is_alive()


def prompt_ids(at: Served, text: str) -> list[int]:
    return list(at.engine.tokenizer(text).input_ids)


def text_of(at: Served, ids: list[int]) -> str:
    return str(at.engine.tokenizer.decode(ids, skip_special_tokens=True))
