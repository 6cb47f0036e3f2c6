"""Ray Serve on a local Ray: two replicas of the engine behind Ray's proxy, one of them killed."""

import inspect
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from fastapi.testclient import TestClient
from tiny_encoder import Alone, make_bert
from tiny_serve import LONGEST_WAIT, Solo, make_tokenizer, until
from tiny_server import GREEDY, make_base, some_adapters

from polyvera.engine.limits import Limits
from polyvera.errors import EngineError, ServeError
from polyvera.replicas.messages import Start
from polyvera.server.api_keys import KeyFile
from polyvera.store.registry import Registry

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'polyvera[ray]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'polyvera[ray]'")

from polyvera.server.ray_serve import Deployed, Deployment, app  # noqa: E402

PLACES = {"model": "/m", "store": "/s", "without_keys": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deployed")
    model = make_base()
    model.save_pretrained(root / "tiny")
    make_tokenizer().save_pretrained(root / "tiny")
    for name, adapter in some_adapters(model).items():
        Registry(root / "store").put(name, adapter)
    return root


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    """The official client of a deployment of two replicas."""
    secret, _ = KeyFile(folder / "keys.json").add("operator", ["*"], base=True, admin=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # by default a worker gives way to all else on the machine
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = {"model": str(folder / "tiny"), "store": str(folder / "store"), "keys": folder / "keys.json"}
        serve.run(app(Deployment(**args, num_replicas=2, max_rows=8)), name="tiny")
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=secret, timeout=LONGEST_WAIT)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """The answer of every adapter alone, and of the base."""
    base, tokenizer = make_base(), make_tokenizer()
    solo, adapters = Solo(base), {"base": None, **some_adapters(base)}
    ids = list(tokenizer("the true thing").input_ids)
    return {n: tokenizer.decode(solo.answers(a, ids, 8), skip_special_tokens=True) for n, a in adapters.items()}


def ask(client: openai.OpenAI, model: str, **more: Any) -> str:
    return client.completions.create(model=model, prompt="the true thing", **GREEDY, **more).choices[0].text


def replicas() -> list[psutil.Process]:
    own = psutil.Process().children(recursive=True)
    return [p for p in own if p.is_running() and "ServeReplica:tiny:polyvera" in " ".join(_cmdline(p))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_a_mix_over_two_replicas_answers_as_each_alone(client: openai.OpenAI, expected: dict[str, str]) -> None:
    asked = [name for name in expected for _ in range(6)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda name: ask(client, name), asked))
    assert found == [expected[name] for name in asked]
    until(lambda: both_have_worked(client, expected))
    for name, text in expected.items():
        parts = list(client.completions.create(model=name, prompt="the true thing", stream=True, **GREEDY))
        assert "".join(part.choices[0].text for part in parts) == text and len(parts) > 2
    with pytest.raises(openai.NotFoundError):
        ask(client, "acme/nope")
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="pv-none"), "acme/one")


def both_have_worked(client: openai.OpenAI, expected: dict[str, str]) -> bool:
    """Whether two replicas have; where they can't be told apart (one was idle, or both did the same) it asks more."""
    if len(totals(client)) == 2:
        return True
    assert ask(client, "base") == expected["base"]
    return False


def totals(client: openai.OpenAI) -> set[str]:
    """What the replicas that answer now have done; those that have done nothing are left out."""
    headers = {"Authorization": f"Bearer {client.api_key}"}
    told = [httpx.get(f"{client.base_url}live", headers=headers).json()["totals"] for _ in range(20)]
    return {str(sorted(one.items())) for one in told if one["answer_tokens"]}


@pytest.mark.slow
def test_what_is_published_answers_in_all(client: openai.OpenAI, folder: Path, expected: dict[str, str]) -> None:
    Registry(folder / "store").put("acme/new", some_adapters(make_base())["acme/two"])
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: ask(client, "acme/new"), range(16))) == {expected["acme/two"]}


@pytest.mark.slow
def test_a_killed_replica_is_replaced(client: openai.OpenAI, expected: dict[str, str]) -> None:
    killed, other = replicas()
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: ask(client, "acme/one") == expected["acme/one"])
    until(lambda: len(found := replicas()) == 2 and killed not in found and other in found)
    assert [ask(client, name) for name in expected] == list(expected.values())


def test_a_failed_engine_is_told_to_ray(folder: Path) -> None:
    given = {"model": str(folder / "tiny"), "store": str(folder / "store"), "pin": ("acme/one",), "without_keys": True}
    one = Deployed(Deployment(**given))
    assert [resident.is_pinned for resident in one._engine.stats().resident] == [True]
    one.check_health()
    one._engine._core.step = None  # type: ignore[method-assign, assignment]
    until(lambda: one._engine.failed)
    with pytest.raises(EngineError, match="error of its own"):
        one.check_health()
    one.__del__()


def test_an_encoder_is_deployed_as_an_encoder(tmp_path: Path) -> None:
    make_bert().base_model.save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    given = {"model": str(tmp_path / "tiny"), "store": str(tmp_path / "store"), "without_keys": True}
    one = Deployed(Deployment(**given))
    with TestClient(one.__serve_build_asgi_app__(), base_url="http://localhost") as client:
        found = client.post("/v1/embeddings", json={"model": "tiny", "input": [[5, 6], [7]]}).json()["data"]
    alone = Alone(make_bert())
    expected = [alone.vector(None, ids).tolist() for ids in ([5, 6], [7])]
    assert [each["embedding"] for each in found] == [pytest.approx(each, abs=1e-5) for each in expected]
    one.__del__()


def test_the_batch_can_fill() -> None:
    options = Deployment(**PLACES, max_rows=32, max_waiting=100, drain_s=5, num_gpus=0.5, num_cpus=3).options
    assert options["max_ongoing_requests"] == 132 and options["graceful_shutdown_timeout_s"] == 15
    assert options["ray_actor_options"] == {"num_cpus": 3, "num_gpus": 0.5} and options["num_replicas"] == 1
    scaled = Deployment(**PLACES, max_rows=32, autoscaling={"max_replicas": 4}).options
    assert scaled["autoscaling_config"] == {"target_ongoing_requests": 32, "max_replicas": 4}
    assert "num_replicas" not in scaled
    assert Deployment(**PLACES, num_gpus=1, num_cpus=3).start == Start("/m", "/s", Limits(), 3, "cuda")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"without_keys": False}, "keys=FILE"),
        ({"store": "adapters"}, "whole path"),
        ({"keys": "keys.json"}, "whole path"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ServeError, match=said):
        app(Deployment(**PLACES | given))


def test_arguments_of_a_file_are_checked() -> None:
    assert inspect.signature(app).parameters["given"].annotation is Deployment, "Ray then makes it of them"
    with pytest.raises(ServeError, match="'max_row'; did you mean 'max_rows'"):
        Deployment(**PLACES, max_row=3)
