"""What can be pointed can be listed, shown and removed."""

from tiny_server import Served


def test_aliases_are_listed_shown_and_removed(at: Served) -> None:
    http = at.http()
    for name, alias in (("acme/one", "prod"), ("acme/one", "test"), ("globex/secret", "prod")):
        assert http.post("/v1/aliases", json={"name": name, "alias": alias}).status_code == 200
    listed = http.get("/v1/aliases").json()["data"]
    assert [one["id"] for one in listed] == ["acme/one@prod", "acme/one@test", "globex/secret@prod"]
    assert [one["id"] for one in http.get("/v1/aliases", params={"prefix": "globex"}).json()["data"]] == [
        "globex/secret@prod"
    ]
    one = http.get("/v1/aliases/acme/one@prod").json()
    assert one == {**listed[0]} and one["root"] == "acme/one@1"
    assert http.delete("/v1/aliases/acme/one@prod").json()["deleted"]
    assert http.get("/v1/aliases/acme/one@prod").status_code == 404
    assert http.delete("/v1/aliases/acme/one@prod").status_code == 404
    assert http.post("/v1/completions", json={"model": "acme/one@prod", "prompt": "x"}).status_code == 404
    assert [one["alias"] for one in http.get("/v1/aliases").json()["data"]] == ["test", "prod"]
    for alias in ("acme/one@test", "globex/secret@prod"):
        http.delete(f"/v1/aliases/{alias}")


def test_pages_go_by_name(at: Served) -> None:
    http = at.http()
    for name in ("acme/one", "acme/two"):
        http.post("/v1/aliases", json={"name": name, "alias": "prod"})
    page = http.get("/v1/aliases", params={"limit": 1}).json()
    assert [one["id"] for one in page["data"]] == ["acme/one@prod"] and page["has_more"]
    rest = http.get("/v1/aliases", params={"after": "acme/one"}).json()
    assert [one["id"] for one in rest["data"]] == ["acme/two@prod"] and not rest["has_more"]
    assert http.get("/v1/aliases", params={"limit": 0}).status_code == 400
    for name in ("acme/one", "acme/two"):
        http.delete(f"/v1/aliases/{name}@prod")


def test_what_is_no_alias_is_told(at: Served) -> None:
    http = at.http()
    assert http.delete("/v1/aliases/acme/one").status_code == 400
    for wrong in ("acme/one@1", "acme/one", "nobody/x@prod", "x@@"):
        assert http.get(f"/v1/aliases/{wrong}").status_code == 404, wrong
