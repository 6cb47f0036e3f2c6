"""`vllm serve` of SmolLM2's first layers with the plugin, in processes of its own, and what clients ask of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from strong_adapters import NUM_TOKENS, PROMPTS

START_S = 600
NUM_LAYERS = 4  # of SmolLM2's thirty, so that a server starts and compiles sooner


def first_layers(folder: Path):
    """SmolLM2 without its later layers, saved to a folder with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polyvera.model.load import locate

    source = locate("smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, num_hidden_layers=NUM_LAYERS).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    model.generation_config.eos_token_id = None  # answers of one length
    return model


def command(model: Path, port: int, *more: str) -> list[str]:
    vllm = f"{os.path.dirname(sys.executable)}/vllm"  # noqa: PTH120 - pathlib would follow the link out of the venv
    lora = ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "8", "--max-cpu-loras", "16"]
    sizes = ["--max-model-len", "128", "--max-num-seqs", "8", "--dtype", "float32"]
    return [vllm, "serve", str(model), "--served-model-name", "base", "--port", str(port), *lora, *sizes, *more]


def environment(**more: str) -> dict[str, str]:
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    return {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", **cpu, **more}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(model: Path, log: Path, env: dict[str, str], *more: str) -> Iterator[httpx.Client]:
    """A client of a server, which ends with the context."""
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen(command(model, port, *more), env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client, server, log)
            yield client
    finally:
        server.terminate()
        server.wait(60)


def wait_for(client, server, log) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def ask(client, model: str, prompt: str = PROMPTS[0]) -> httpx.Response:
    greedy = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    return client.post("/v1/completions", json={"model": model, "prompt": prompt, **greedy})


def text(client, model: str, prompt: str = PROMPTS[0]) -> str:
    answer = ask(client, model, prompt)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]
