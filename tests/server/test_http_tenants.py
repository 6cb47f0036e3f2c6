"""Two tenants try every route to reach each other's adapters."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import openai
import pytest
from tiny_server import GREEDY, Served, served

from polyvera.store.file.codec import encode

OTHERS, NOBODYS = "globex/secret", "globex/nothing"


@dataclass(frozen=True)
class Keys:
    acme: str
    acme_admin: str
    globex: str
    operator: str
    expired: str


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), with_keys=True) as found:
        yield found


@pytest.fixture(scope="module")
def keys(at: Served) -> Keys:
    assert at.keys is not None
    add = at.keys.add
    return Keys(
        add("acme", ["acme/*"])[0],
        add("acme", ["acme/*"], admin=True)[0],
        add("globex", ["globex/*"], base=True)[0],
        add("operator", ["*"], base=True, admin=True)[0],
        add("acme", ["acme/*"], base=True, days=-1)[0],
    )


def attempts(http: httpx.Client, name: str, data: bytes) -> Iterator[httpx.Response]:
    """Every way to name an adapter, on every route."""
    ids = [name, f"{name}@1", f"{name}@latest", f"{name}@prod", f"base:{name}", f"tiny:{name}@1"]
    for id in ids:
        yield http.post("/v1/completions", json={"model": id, "prompt": "x", **GREEDY})
        yield http.post("/v1/completions", json={"model": id, "prompt": "x", "stream": True, **GREEDY})
        yield http.post("/v1/chat/completions", json={"model": id, "messages": [{"role": "user", "content": "x"}]})
        yield http.post("/tokenize", json={"model": id, "prompt": "x"})
        yield http.post("/detokenize", json={"model": id, "tokens": [5]})
        yield http.get(f"/v1/models/{id}")
        yield http.get(f"/v1/adapters/{id}")
        yield http.delete(f"/v1/adapters/{id}")
        yield http.post("/v1/embeddings", json={"model": id, "input": "x"})
        yield http.post("/v1/classify", json={"model": id, "input": "x"})
    yield http.put(f"/v1/adapters/{name}", content=data)
    yield http.post("/v1/aliases", json={"name": name, "alias": "mine"})
    yield http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": "/"})
    yield http.post("/v1/unload_lora_adapter", json={"lora_name": name})


@pytest.mark.parametrize("who", ["acme", "acme_admin"])
def test_no_route_reaches_anothers_adapter_or_tells_of_it(at: Served, keys: Keys, who: str) -> None:
    data = encode(at.adapters["acme/one"])
    with at.http(getattr(keys, who)) as http:
        there, absent = list(attempts(http, OTHERS, data)), list(attempts(http, NOBODYS, data))
    for one, other in zip(there, absent, strict=True):
        assert one.status_code == other.status_code and one.status_code in (400, 403, 404)
        assert one.text.replace(OTHERS, "N") == other.text.replace(NOBODYS, "N"), "no difference to a name of nobody's"
    assert [str(ref) for ref in at.registry.list("globex")] == ["globex/secret@1"], "nothing changed"
    assert at.registry.aliases(OTHERS) == {}


@pytest.mark.parametrize("who", ["acme", "acme_admin"])
def test_lists_tell_ones_own(at: Served, keys: Keys, who: str) -> None:
    key = getattr(keys, who)
    with at.http(keys.globex) as http:
        assert http.post("/v1/completions", json={"model": OTHERS, "prompt": "x", **GREEDY}).status_code == 200
    assert {model.id for model in at.openai(key).models.list()} == {"acme/one", "acme/two"}
    with at.http(key) as http:
        assert {one["name"] for one in http.get("/v1/adapters").json()["data"]} == {"acme/one", "acme/two"}
        assert http.get("/v1/adapters", params={"prefix": "globex"}).json()["data"] == []
        live = http.get("/v1/live").json()
        assert OTHERS not in str(live) and live["hidden_resident"] >= 1


def test_what_runs_of_others_has_no_name(at: Served, keys: Keys) -> None:
    long = {"model": OTHERS, "prompt": "x", "max_tokens": 150, "ignore_eos": True, "n": 8, "temperature": 1}
    with at.http(keys.globex) as others, at.http(keys.acme) as http:
        asking = Thread(target=lambda: others.post("/v1/completions", json=long))
        asking.start()
        seen = []
        while asking.is_alive():
            seen.append(http.get("/v1/live").json())
    assert any(live["hidden_running"] == 8 for live in seen) and all(live["running"] == [] for live in seen)


def test_own_adapters_answer_and_the_base_only_where_allowed(at: Served, keys: Keys) -> None:
    assert at.openai(keys.acme).completions.create(model="acme/one", prompt="x", **GREEDY).model == "acme/one@1"
    with pytest.raises(openai.PermissionDeniedError):
        at.openai(keys.acme).completions.create(model="base", prompt="x", **GREEDY)
    assert at.openai(keys.globex).completions.create(model="base", prompt="x", **GREEDY).model == "tiny"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/live", "/v1/adapters", "/metrics", "/tokenize", "/nope"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer \xff"])
def test_without_a_right_key_nothing_is_told(at: Served, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = httpx.get(at.url + path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_an_expired_key_is_none(at: Served, keys: Keys) -> None:
    with pytest.raises(openai.AuthenticationError):
        at.openai(keys.expired).models.list()


def test_publishing_needs_the_admin_scope(at: Served, keys: Keys) -> None:
    data = encode(at.adapters["acme/one"])
    with at.http(keys.acme) as http:
        assert http.put("/v1/adapters/acme/mine", content=data).status_code == 403
        assert http.get("/metrics").status_code == 403
    with at.http(keys.acme_admin) as http:
        assert http.put("/v1/adapters/acme/mine", content=data).status_code == 201
        assert http.delete("/v1/adapters/acme/mine@1").status_code == 200
    with at.http(keys.operator) as http:
        assert http.post("/v1/completions", json={"model": "acme/one", "prompt": "x", **GREEDY}).status_code == 200
        assert 'polyvera_tokens_total{adapter="acme/one",kind="answer",tenant="operator"}' in http.get("/metrics").text


def test_a_removed_key_ends_at_once(at: Served) -> None:
    assert at.keys is not None
    secret, key = at.keys.add("acme", ["acme/*"])
    with at.http(secret) as http:
        assert http.get("/v1/models").status_code == 200
        at.keys.remove(key.id)
        assert http.get("/v1/models").status_code == 401


def test_health_needs_no_key(at: Served) -> None:
    assert [httpx.get(at.url + path).status_code for path in ("/health", "/ready", "/version")] == [200, 200, 200]


def test_a_broken_file_of_keys_is_503_for_all_and_not_ready(tmp_path: Path) -> None:
    with served(tmp_path, with_keys=True) as at:
        assert at.keys is not None
        secret, _ = at.keys.add("acme", ["acme/*"])
        whole = at.keys.path.read_bytes()
        at.keys.path.write_text("{broken")
        with at.http(secret) as http:
            refused = http.post("/v1/completions", json={"model": "acme/one", "prompt": "x", **GREEDY})
            assert refused.status_code == 503 and refused.json()["error"]["type"] == "server_error"
            assert str(tmp_path) not in refused.text
            assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
            at.keys.path.write_bytes(whole)
            assert http.get("/ready").status_code == 200 and http.get("/v1/models").status_code == 200
