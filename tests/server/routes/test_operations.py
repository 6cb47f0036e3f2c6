"""Tokens, health, versions and metrics."""

from tiny_server import GREEDY, HELLO, Served, prompt_ids


def test_tokens_there_and_back(at: Served) -> None:
    http = at.http()
    ids = http.post("/tokenize", json={"prompt": "the true thing"}).json()
    assert ids["tokens"] == prompt_ids(at, "the true thing") and ids["count"] == len(ids["tokens"])
    assert http.post("/detokenize", json={"tokens": ids["tokens"]}).json() == {"prompt": "the true thing"}
    chat = http.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
    assert chat == prompt_ids(at, "user: the true thing\n")
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "x", "model": "nope"}).status_code == 404


def test_health_version_live_and_metrics(at: Served) -> None:
    http = at.http()
    assert [http.get(path).status_code for path in ("/health", "/ready", "/version")] == [200, 200, 200]
    assert http.post("/v1/completions", json={"model": "acme/one", "prompt": "the", **GREEDY}).status_code == 200
    live = http.get("/v1/live").json()
    assert live["max_rows"] == 8 and live["hidden_resident"] == 0 and live["totals"]["steps"] > 0
    text = http.get("/metrics").text
    for name in ("running", "waiting", "resident_adapters", "time_to_first_token_seconds_count", "engine_hits_total"):
        assert f"polyvera_{name}" in text
    assert 'polyvera_tokens_total{adapter="acme/one",kind="answer",tenant=""}' in text
