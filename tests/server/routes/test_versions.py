"""What was put can be got, version by version, and removed whole."""

from hashlib import sha256
from pathlib import Path

from tiny_server import Served, served

from polyvera.store.file.codec import encode


def test_a_file_comes_back_byte_for_byte(at: Served) -> None:
    http, ref = at.http(), at.registry.resolve("acme/one")
    for name in ("acme/one/file", "acme/one@1/file", "acme/one@latest/file"):
        answer = http.get(f"/v1/adapters/{name}")
        assert answer.status_code == 200 and answer.content == Path(ref.path).read_bytes()
        assert answer.headers["etag"] == f'"{sha256(answer.content).hexdigest()}"'
        assert 'filename="acme.one@1.safetensors"' in answer.headers["content-disposition"]
    again = http.put("/v1/adapters/acme/copied", content=answer.content)
    assert again.status_code == 201 and again.json()["id"] == "acme/copied@1"
    assert http.delete("/v1/adapters/acme/copied", params={"all_versions": True}).json()["versions"] == [1]
    for name in ("acme/one@9/file", "nobody/file", "acme/one@x/versions", "nobody/versions"):
        assert http.get(f"/v1/adapters/{name}").status_code == 404, name


def test_versions_are_listed_and_a_name_is_removed_whole(tmp_path: Path) -> None:
    with served(tmp_path) as at:
        http, data = at.http(), encode(at.adapters["acme/one"])
        for alias in (None, "prod", None):
            params = {} if alias is None else {"alias": alias}
            assert http.put("/v1/adapters/acme/many", content=data, params=params).status_code == 201
        listed = http.get("/v1/adapters/acme/many/versions").json()["data"]
        assert [one["id"] for one in listed] == [f"acme/many@{i}" for i in (3, 2, 1)]
        assert listed[0]["aliases"] == {"prod": 2}
        for wrong in ("acme/many@2", "nobody/x"):
            assert http.delete(f"/v1/adapters/{wrong}", params={"all_versions": True}).status_code in (400, 404)
        gone = http.delete("/v1/adapters/acme/many", params={"all_versions": True})
        assert gone.status_code == 200 and gone.json()["versions"] == [1, 2, 3]
        assert http.get("/v1/adapters/acme/many").status_code == 404
        assert at.registry.list("acme/many") == [] and http.get("/v1/aliases").json()["data"] == []


def test_an_adapter_whose_name_ends_so_is_shown(tmp_path: Path) -> None:
    with served(tmp_path) as at:
        at.registry.put("acme/one/file", at.adapters["acme/one"])
        assert at.http().get("/v1/adapters/acme/one/file").json()["id"] == "acme/one/file@1"
        assert at.http().get("/v1/adapters/acme/one/file/file").content == encode(at.adapters["acme/one"])


def test_a_damaged_file_is_told_and_not_sent(tmp_path: Path) -> None:
    with served(tmp_path) as at:
        path = Path(at.registry.resolve("acme/one").path)
        path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
        answer = at.http().get("/v1/adapters/acme/one/file")
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "adapter_damaged"
