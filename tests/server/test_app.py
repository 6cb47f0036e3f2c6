"""What holds for every route: who serves what, ids, and the shape of errors."""

import base64

from tiny_server import Served

JSON = {"content-type": "application/json"}


def test_an_encoders_routes_say_what_runs(at: Served) -> None:
    answer = at.http().post("/v1/embeddings", json={"model": "base", "input": "x"})
    assert answer.status_code == 400 and "encoder" in answer.json()["error"]["message"]


def test_every_answer_has_an_id_and_unknown_routes_the_shape(at: Served) -> None:
    http = at.http()
    for answer in (http.get("/nope"), http.put("/v1/models"), http.post("/v1/completions", content=b"{", headers=JSON)):
        assert answer.status_code in (400, 404, 405) and "message" in answer.json()["error"]
        assert len(answer.headers["x-request-id"]) == 32
    assert http.post("/v1/completions", content=base64.b64encode(b"x")).status_code == 415
