"""The last hour and the key, as the page asks for them."""

from pathlib import Path

from tiny_server import GREEDY, served


def test_each_key_sees_itself_and_its_own_hour(tmp_path: Path) -> None:
    with served(tmp_path, with_keys=True) as at:
        assert at.keys is not None
        acme, key = at.keys.add("acme", ["acme/*"], admin=True, weight=2)
        globex, _ = at.keys.add("globex", ["globex/*"])
        operator, _ = at.keys.add("operator", ["*"], base=True)
        me = at.http(acme).get("/v1/me").json()
        assert (me["tenant"], me["key"], me["admin"], me["can_publish"], me["weight"]) == (
            "acme",
            key.id,
            True,
            True,
            2,
        )
        assert not at.http(globex).get("/v1/me").json()["can_publish"]
        for secret, model in ((acme, "acme/one"), (globex, "globex/secret"), (operator, "base")):
            given = {"model": model, "prompt": "x", "ignore_eos": True, **GREEDY}
            assert at.http(secret).post("/v1/completions", json=given).status_code == 200
        names = {
            who: [line["name"] for line in at.http(who).get("/v1/history").json()["data"]] for who in (acme, operator)
        }
        assert names[acme] == ["acme/one"] and set(names[operator]) == {"acme/one", "globex/secret", "tiny"}
        by_tenant = at.http(operator).get("/v1/history", params={"group_by": "tenant"}).json()
        assert {line["name"] for line in by_tenant["data"]} == {"acme", "globex", "operator"}
        assert all(any(line["first_token_s"]) and not line["waiting"][-1] < 0 for line in by_tenant["data"])
        assert at.http(acme).get("/v1/history", params={"group_by": "key"}).status_code == 400
