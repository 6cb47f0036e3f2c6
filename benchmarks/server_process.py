"""A server in a process of its own, and what it holds; the first layers of a base, which make quick steps."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvera.model.load import Base, load_base

LOG = "log"
FAULTS = ("ERROR", "Error", "Exception", "Traceback", "Disconnect")


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that answers at a URL. log: what it wrote."""

    url: str
    pid: int
    log: Path

    def held(self) -> str:
        """Memory, descriptors and threads."""
        process = Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        num_files = len(list((process / "fd").iterdir()))
        mib = int(status["VmRSS"].split()[0]) >> 10
        return f"{mib} MiB, {num_files} descriptors, {status['Threads'].strip()} threads"

    def errors(self) -> list[str]:
        """The lines of its log that say that something failed."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if any(word in line for word in FAULTS)]


def begun(model: str, folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server with its store and its log in a folder, and its URL, which it answers at by now."""
    store = ["--store", str(folder / "store"), "--port", "0"]
    command, log = [sys.executable, "-m", "polyvera", "serve", model, *store, *flags], folder / LOG
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    while (url := re.search(r"http://1[^\s;]+", log.read_text())) is None:
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    return process, url[0]


def ended(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, by force where it takes over 90 s."""
    process.terminate()
    try:
        process.wait(90)
    finally:
        process.kill()


@contextmanager
def serving(model: str, folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """A server as begun() starts it, which ends afterwards."""
    process, url = begun(model, folder, *flags)
    try:
        yield ServerProcess(url, process.pid, folder / LOG)
    finally:
        ended(process)


def cut(model: str, num_layers: int, folder: Path) -> Base:
    """A base's first layers, as they are loaded from a folder where they were written."""
    base = load_base(model)
    whole: Any = base.model
    body = whole.model if hasattr(whole, "model") else whole.encoder
    name = "layers" if hasattr(body, "layers") else "layer"
    setattr(body, name, getattr(body, name)[:num_layers])
    whole.config.num_hidden_layers = num_layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = whole.config.layer_types[:num_layers]
    whole.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return load_base(str(folder))
