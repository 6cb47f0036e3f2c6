"""No route reaches what is another tenant's by any spelling of its id; each says what it says of an id of nobody's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from raw_tinker import RawTinker, pass_body, supervised
from test_samplers import PROMPT, sampler
from tuned_server import Tuned

PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
GONE = (400, 403, 404, 405, 422)


@pytest.fixture(scope="module")
def ids(training: Tuned, acme: RawTinker) -> dict[str, str]:
    """One of everything of the first tenant's."""
    files = training.acme
    file = training.upload(files)
    upload = files.uploads.create(filename="a.jsonl", bytes=9, mime_type="text/jsonl", purpose="fine-tune").id
    job = files.fine_tuning.jobs.create(model="tiny", training_file=file).id
    session = acme.session()
    run = acme.run(session)
    future = acme.send(pass_body(run, 1, supervised())).json()
    acme.result(future)
    saved = acme.result(acme.post("/save_weights", model_id=run, seq_id=2, path="one"))["path"]
    samples = acme.result(acme.post("/save_weights_for_sampler", model_id=run, seq_id=3, path="two"))["path"]
    named = {"session": session, "run": run, "future": future["request_id"], "saved": saved, "samples": samples}
    return {"file": file, "upload": upload, "job": job, **named, "sampler": sampler(acme, base_model="tiny")}


def nobodys(id: str) -> str:
    """An id of the same form."""
    at = max(i for i, letter in enumerate(id) if letter.isalnum() and not id[i:].startswith(("one", "two")))
    digits = [i for i, letter in enumerate(id) if letter in "0123456789abcdef" and i > 8]
    at = digits[0] if digits else at
    return id[:at] + ("0" if id[at] != "0" else "1") + id[at + 1 :]


def spellings(id: str) -> list[str]:
    """An id, and what a careless server might take for it."""
    plain = id.removeprefix("tinker://")
    odd = [plain.upper(), f"{plain}%20", f"{plain}%00", f"../x/{plain}", f"x/..%2F{plain}", f"{plain}/.", f"%2F{plain}"]
    wide = "".join(chr(ord(letter) + 0xFEE0) if letter.isalnum() else letter for letter in plain)
    return [plain, quote(plain, safe=""), quote(wide), f"{plain[:-1]}%25", f"{plain[:-1]}_", *odd]


def by_path(http: httpx.Client, paths: dict[str, dict[str, object]], id: str) -> Iterator[tuple[str, httpx.Response]]:
    """Every route with a parameter, by every spelling."""
    for path, methods in paths.items():
        if not PARAMETER.search(path):
            continue
        for spelled in spellings(id):
            url = PARAMETER.sub(lambda match, one=spelled: "weights" if match[1] == "kind" else one, path)
            for method in methods:
                yield f"{method} {url}", http.request(method, url, json={} if method in ("post", "put") else None)


def by_body(http: httpx.Client, ids: dict[str, str], own_session: str) -> Iterator[tuple[str, httpx.Response]]:
    """Every body that names a thing of a tenant's."""
    run, call = {"model_id": ids["run"]}, "/api/v1"
    bodies: list[tuple[str, dict[str, object]]] = [
        ("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": ids["file"]}),
        (f"{call}/session_heartbeat", {"session_id": ids["session"]}),
        (f"{call}/create_model", {"session_id": ids["session"], "model_seq_id": 9, "base_model": "tiny"}),
        (f"{call}/get_info", run),
        (f"{call}/retrieve_future", {"request_id": ids["future"]}),
        (f"{call}/cancel_future", {"request_id": ids["future"]}),
        (f"{call}/optim_step", {**run, "seq_id": 5, "adam_params": {"learning_rate": 0.1}}),
        (f"{call}/save_weights", {**run, "seq_id": 5, "path": "mine"}),
        (f"{call}/save_weights_for_sampler", {**run, "seq_id": 5, "path": "mine"}),
        (f"{call}/load_weights", {**run, "seq_id": 5, "path": ids["saved"]}),
        (f"{call}/load_weights", {"session_id": own_session, "model_seq_id": 7, "path": ids["saved"]}),
        (f"{call}/weights_info", {"tinker_path": ids["saved"]}),
        (f"{call}/create_sampling_session", {"session_id": ids["session"], "sampling_session_seq_id": 1}),
        (
            f"{call}/create_sampling_session",
            {"session_id": own_session, "sampling_session_seq_id": 1, "model_path": ids["samples"]},
        ),
        (f"{call}/asample", {"sampling_session_id": ids["sampler"], "prompt": PROMPT}),
        (f"{call}/asample", {"model_path": ids["samples"], "prompt": PROMPT}),
    ]
    for path, body in bodies:
        yield f"{path} {body}", http.post(path, json=body)
    message = pass_body(ids["run"], 6, supervised())
    headers = {"content-type": "application/x-protobuf"}
    yield "a pass", http.post(f"{call}/forward_backward", content=message, headers=headers)


def test_no_path_and_no_body_reaches_another_tenants_things(
    training: Tuned, globex: RawTinker, ids: dict[str, str]
) -> None:
    assert training.at.keys is not None
    secret, _ = training.at.keys.add("globex", ["globex/*"], admin=True)
    before = shown(training)
    with training.at.http(secret) as http:
        paths = http.get("/openapi.json").json()["paths"]
        session = globex.session()
        for name, id in ids.items():
            other = nobodys(id)
            for (asked, there), (_, absent) in zip(by_path(http, paths, id), by_path(http, paths, other), strict=True):
                assert_same(f"{name}: {asked}", there, absent, id, other)
        others = {name: nobodys(id) for name, id in ids.items()}
        for (asked, there), (_, absent) in zip(
            by_body(http, ids, session), by_body(http, others, session), strict=True
        ):
            assert there.status_code in GONE or "cancel_future" in asked, (asked, there.text)
            assert there.status_code == absent.status_code, (asked, there.text, absent.text)
        listed = "".join(http.get(path).text for path in paths if not PARAMETER.search(path) and "get" in paths[path])
    assert not [name for name, id in ids.items() if id in listed]
    assert shown(training) == before, "nothing changed"


def assert_same(asked: str, there: httpx.Response, absent: httpx.Response, id: str, other: str) -> None:
    assert there.status_code in GONE and there.status_code == absent.status_code, (asked, there.text, absent.text)

    def bare(text: str, id: str) -> str:
        for one in sorted(spellings(id), key=len, reverse=True):
            text = text.replace(httpx.URL(f"http://x/{one}").path[1:], "ID").replace(one, "ID")
        return text

    assert bare(there.text, id) == bare(absent.text, other) or there.status_code == 400, (asked, there.text)


def shown(training: Tuned) -> list[object]:
    """What the first tenant has."""
    client = training.acme
    job = client.fine_tuning.jobs.list().data[0]
    return [[file.id for file in client.files.list()], job.id, job.status in ("queued", "running", "succeeded")]
