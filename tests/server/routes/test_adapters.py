"""Adapters are published, named and removed over HTTP."""

import gc
import json
import os
from dataclasses import replace
from pathlib import Path

import httpx
import torch
from tiny_serve import Solo, make_adapter, until
from tiny_server import GREEDY, Served, make_base, prompt_ids, text_of

from polyvera.adapter.basis import basis_at_hand, given_basis
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.unread import CLASS
from polyvera.store.file.codec import encode
from polyvera.store.peft import export_peft


def test_publish_alias_answer_and_remove(at: Served, solo: Solo) -> None:
    http, name = at.http(), "acme/fresh"
    adapter = at.adapters["globex/secret"]
    put = http.put(f"/v1/adapters/{name}", params={"alias": "prod"}, content=encode(adapter))
    assert put.status_code == 201 and put.json()["id"] == f"{name}@1" and put.json()["aliases"] == {"prod": 1}
    expected = text_of(at, solo.answers(adapter, prompt_ids(at, "the"), 8))
    ask = {"prompt": "the", **GREEDY}
    assert at.openai().completions.create(model=f"{name}@prod", **ask).choices[0].text == expected
    http.put(f"/v1/adapters/{name}", content=encode(at.adapters["acme/one"]))
    moved = http.post("/v1/aliases", json={"name": name, "alias": "prod", "version": 2})
    assert moved.json() == {"id": f"{name}@prod", "root": f"{name}@2"}
    other = text_of(at, solo.answers(at.adapters["acme/one"], prompt_ids(at, "the"), 8))
    assert at.openai().completions.create(model=f"{name}@prod", **ask).choices[0].text == other
    assert http.delete(f"/v1/adapters/{name}").status_code == 400, "which version?"
    assert http.delete(f"/v1/adapters/{name}@1").status_code == 200
    assert http.get(f"/v1/adapters/{name}@1").status_code == 404
    until(lambda: f"{name}@1" not in {one["adapter"] for one in http.get("/v1/live").json()["resident"]})


def test_a_malformed_adapter_is_refused(at: Served) -> None:
    good = encode(at.adapters["acme/one"])
    flipped = good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    other = encode(replace(at.adapters["acme/one"], base="0" * 16 + "-" + "1" * 16))
    spans = encode(replace(at.adapters["acme/one"], origin={CLASS: "T5EncoderModel"}))
    for bad in (b"", b"x" * 200, good[:-9], flipped, other, spans):
        answer = at.http().put("/v1/adapters/acme/bad", content=bad)
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid_adapter"
    assert at.http().get("/v1/adapters/acme/bad").status_code == 404
    assert at.http().put("/v1/adapters/..%2f..%2fetc", content=good).status_code == 400


def test_an_adapter_of_a_made_basis_needs_it_in_the_store(at: Served) -> None:
    A, B = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((4, 64), (64, 4)))
    basis = given_basis(A, B)
    sha256, spec = basis.sha256, AdapterSpec(rank=4, init=basis.sha256, in_max=64, out_max=64)
    alone, adapter = Solo(make_base()), make_adapter(make_base(), spec, 1)
    data, expected = encode(adapter), alone.answers(adapter, prompt_ids(at, "the"), 8)
    del adapter, basis, alone
    gc.collect()
    assert basis_at_hand(sha256) is None
    refused = at.http().put("/v1/adapters/acme/made", content=data)
    assert refused.status_code == 422 and f"names the made basis {sha256[:12]}" in refused.json()["error"]["message"]
    assert at.http().get("/v1/adapters/acme/made").status_code == 404
    at.registry.bases.put(given_basis(A, B), "made")
    gc.collect()
    assert at.http().put("/v1/adapters/acme/made", content=data).status_code == 201
    answer = at.openai().completions.create(model="acme/made", prompt="the", **GREEDY).choices[0].text
    assert answer == text_of(at, expected)


def test_vllms_two_routes(at: Served, loras: Path, tmp_path: Path) -> None:
    http, ask = at.http(), {"prompt": "the", **GREEDY}
    export_peft(at.adapters["acme/one"], loras / "peft")
    (loras / "file.safetensors").write_bytes(encode(at.adapters["acme/two"]))
    (loras / "link").symlink_to(tmp_path)
    for path in (str(tmp_path), "../store", "link", "/etc"):
        body = {"lora_name": "acme/loaded", "lora_path": path}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 403, "outside of the root"
    body = {"lora_name": "acme/loaded", "lora_path": "peft"}
    for path, source in (("peft", "acme/one"), (str(loras / "file.safetensors"), "acme/two")):
        loaded = http.post("/v1/load_lora_adapter", json={**body, "lora_path": path, "load_inplace": True})
        assert loaded.text == "Success: LoRA adapter 'acme/loaded' added successfully."
        found = at.openai().completions.create(model="acme/loaded", **ask).choices[0].text
        assert found == at.openai().completions.create(model=source, **ask).choices[0].text
    again = http.post("/v1/load_lora_adapter", json=body)
    assert again.status_code == 400 and "already been loaded" in again.json()["error"]["message"]
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/loaded"})
    assert gone.text == "Success: LoRA adapter 'acme/loaded' removed successfully."
    assert http.get("/v1/models/acme/loaded").status_code == 404
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "acme/loaded"}).status_code == 404
    assert http.post("/v1/load_lora_adapter", json=body).status_code == 200, "put back into service"
    assert (
        http.post("/v1/load_lora_adapter", json={**body, "lora_name": "acme/no", "lora_path": "no"}).status_code == 404
    )


def test_a_peft_folder_is_read_within_bounds(at: Served, loras: Path) -> None:
    """An expression that explodes, a pipe, a link: each is refused, and the server goes on."""
    http = at.http()

    def loaded(folder: str) -> httpx.Response:
        return http.post("/v1/load_lora_adapter", json={"lora_name": "acme/bad", "lora_path": folder})

    export_peft(at.adapters["acme/one"], loras / "bad")
    config = loras / "bad" / "adapter_config.json"
    given = json.loads(config.read_text())
    for key, word in (("target_modules", "takes more than"), ("exclude_modules", "takes more than")):
        bad = "(((([a-z_.0-9]{1,50}){1,50}){1,50}){1,50})[!?]"
        config.write_text(json.dumps({**given, key: bad}))
        refused = loaded("bad")
        assert refused.status_code == 422 and key in refused.text and word in refused.text
        assert str(loras) not in refused.text
    config.unlink()
    os.mkfifo(config)
    assert loaded("bad").status_code == 422
    config.unlink()
    config.symlink_to(loras / "peft" / "adapter_config.json")
    assert loaded("bad").status_code == 403
    os.mkfifo(loras / "pipe")
    assert loaded("pipe").status_code == 422
    assert http.get("/health").status_code == 200
