"""serve and keys, as processes."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from task_rows import task_rows, write_rows
from tiny_folder import save_tiny, save_tiny_encoder
from tiny_models import counting_rows
from typer.testing import CliRunner

from polyvera.adapter.inject import load
from polyvera.adapter.route import route
from polyvera.cli import app
from polyvera.model.task import LABEL
from polyvera.train.recipe import Recipe
from polyvera.train.trainer import train

MINUTES = 120.0


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real `polyvera serve`, and its URL."""
    command = [
        str(Path(sys.executable).with_name("polyvera")),
        "serve",
        str(folder / "base"),
        "--store",
        str(folder / "store"),
    ]
    process = subprocess.Popen([*command, "--port", "0", *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
        yield process, url
    finally:
        process.kill()
        process.wait(MINUTES)


@pytest.mark.parametrize("replicas", ["1", "2"])
def test_a_served_process_ends_well_when_told(tmp_path: Path, replicas: str) -> None:
    save_tiny(tmp_path / "base")
    long = {"model": "base", "prompt": "w1 w2", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with serving(tmp_path, "--max-rows", "4", "--replicas", replicas) as (process, url):
        assert httpx.get(f"{url}/v1/models", timeout=MINUTES).json()["data"][0]["id"] == "base"
        with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=MINUTES) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(MINUTES) == 0


def test_a_taken_port_and_a_public_address_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    base = ["serve", str(tmp_path / "base"), "--store", str(tmp_path / "store")]
    with serving(tmp_path) as (_, url):
        taken = CliRunner().invoke(app, [*base, "--port", url.rpartition(":")[2]])
    public = CliRunner().invoke(app, [*base, "--host", "0.0.0.0"])
    assert taken.exit_code == public.exit_code == 1
    assert "cannot listen" in taken.output and "--keys FILE" in " ".join(public.output.split())
    assert threading.active_count() < 50


def test_what_is_wrong_without_the_model_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    for file in (tmp_path / "base").glob("*.safetensors"):
        file.unlink()  # loading it must fail
    base = ["serve", str(tmp_path / "base"), "--store", str(tmp_path / "store"), "--port", "0"]
    (tmp_path / "keys.json").write_text("{")
    (tmp_path / "usage").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong = {
            "cannot listen on": [*base[:-1], str(taken.getsockname()[1])],
            "no file of keys": [*base, "--keys", str(tmp_path / "keys.json")],
            "is not a folder": [*base, "--lora-root", str(tmp_path / "keys.json")],
            "no adapter 'acme/none'": [*base, "--pin", "acme/none"],
            "the file of usage": [*base, "--usage", str(tmp_path / "usage")],
        }
        for word, command in wrong.items():
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 1 and word in " ".join(result.output.split()), result.output


def test_a_hangup_reloads_and_each_request_is_a_line(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    with serving(tmp_path, "--access-log") as (process, url):
        process.send_signal(signal.SIGHUP)
        asked = {"model": "base", "prompt": "w1 w2", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=asked, headers={"x-request-id": "mine"}, timeout=MINUTES)
        assert answer.status_code == 200 and process.poll() is None
        assert process.stdout is not None
        row = json.loads(next(line for line in process.stdout if '"mine"' in line))
        assert (row["status"], row["path"], row["completion_tokens"]) == (200, "/v1/completions", 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(MINUTES) == 0


def test_keys_are_made_listed_used_and_removed(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    made = CliRunner().invoke(app, ["keys", file, "--add", "acme", "--base", "--requests-per-minute", "60"])
    secret = made.stdout.strip()
    assert made.exit_code == 0 and secret.startswith("pv-")
    listed = CliRunner().invoke(app, ["keys", file])
    assert (
        "acme/*" in listed.output
        and "60 requests/min" in " ".join(listed.output.split())
        and secret not in listed.output
    )
    save_tiny(tmp_path / "base")
    with serving(tmp_path, "--keys", file) as (_, url):
        bearer = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{url}/v1/models", timeout=MINUTES).status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=bearer, timeout=MINUTES).status_code == 200
        id = json.loads(Path(file).read_text())["keys"][0]["sha256"][:12]
        assert CliRunner().invoke(app, ["keys", file, "--remove", id]).exit_code == 0
        assert httpx.get(f"{url}/v1/models", headers=bearer, timeout=MINUTES).status_code == 401


def test_an_encoder_is_served_as_one_and_says_what_has_no_effect(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path / "base")
    dry = ["serve", str(tmp_path / "base"), "--store", str(tmp_path / "store"), "--dry-run", "--max-context", "60"]
    told = " ".join(CliRunner().invoke(app, dry).output.split())
    assert "an encoder for /v1/embeddings (mean of the last hidden states, normalised) and /v1/classify" in told
    assert "64 texts of up to 60 tokens" in told and "--prefix-mib has no effect" in told
    too_long = CliRunner().invoke(app, [*dry, "--max-context", "65"])
    assert too_long.exit_code == 1 and "reads at most 64 tokens" in " ".join(too_long.output.split())
    with serving(tmp_path) as (process, url):
        asked = {"model": "base", "input": ["w1 w2", "w3"]}
        found = httpx.post(f"{url}/v1/embeddings", json=asked, timeout=MINUTES).json()
        assert [len(one["embedding"]) for one in found["data"]] == [32, 32]
        process.send_signal(signal.SIGTERM)
        assert process.wait(MINUTES) == 0


@pytest.mark.parametrize(
    "flags", [["--admin"], ["--base"], ["--adapters", "x/*"], ["--days", "3"], ["--tokens-per-day", "3"]]
)
def test_rights_without_a_new_key_are_refused(tmp_path: Path, flags: list[str]) -> None:
    result = CliRunner().invoke(app, ["keys", str(tmp_path / "keys.json"), *flags])
    assert result.exit_code == 1 and "--add TENANT" in result.output


def test_a_server_that_trains_serves_what_it_trained_and_lets_its_trainer_go(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    rows = "".join(json.dumps(row) + "\n" for row in counting_rows(4)).encode()
    flags = ("--train", "--train-rank", "4", "--train-folder", str(tmp_path / "training"), "--train-share", "0.5")
    with serving(tmp_path, *flags) as (process, url), httpx.Client(base_url=url, timeout=MINUTES) as http:
        form = {"files": {"file": ("rows.jsonl", rows)}, "data": {"purpose": "fine-tune"}}
        file = http.post("/v1/files", **form).json()["id"]
        job = http.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": file}).json()
        while job["status"] in ("queued", "running"):
            time.sleep(0.1)
            job = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
        asked = {"model": job["fine_tuned_model"], "prompt": "w1 w2", "max_tokens": 4}
        assert job["fine_tuned_model"].startswith("ft/open/")
        assert http.post("/v1/completions", json=asked).json()["model"] == f"{job['fine_tuned_model']}@3"
        process.send_signal(signal.SIGTERM)
        assert process.wait(MINUTES) == 0


def test_an_encoder_trains_nothing(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path / "base")
    made = CliRunner().invoke(app, ["serve", str(tmp_path / "base"), "--store", str(tmp_path / "s"), "--train"])
    assert made.exit_code == 1 and "is an encoder" in " ".join(made.output.split())


@pytest.mark.parametrize("replicas", ["1", "2"])
def test_a_language_models_classifiers_are_served(tmp_path: Path, replicas: str) -> None:
    save_tiny(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", task_rows(LABEL, 12))
    given = {"model": str(tmp_path / "base"), "data": str(rows), "max_steps": 3, "rank": 4, "lr": 0.1}
    trained = train(Recipe(**given, name="t/x", store=str(tmp_path / "store")), progress=False)
    asked = {"model": "t/x", "input": ["w1 w2", "w3 w4 w9"]}
    with serving(tmp_path, "--task", "label", "--replicas", replicas) as (_, url):
        found = httpx.post(f"{url}/v1/classify", json=asked, timeout=MINUTES).json()["data"]
    base, adapter = trained.base, trained.adapter
    assert adapter is not None
    with torch.no_grad(), route(*load(base.model.eval(), adapter)):
        for text, one in zip(asked["input"], found, strict=True):
            logits = base.model(input_ids=torch.tensor([base.tokenizer(text).input_ids])).logits
            assert one["probs"] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)
