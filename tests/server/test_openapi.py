"""The description of the API is true: every body is there, and every reference leads somewhere."""

import json
import re
from typing import Any

import pytest
from tiny_server import Served

from polyvera.server.openapi import BODIES


@pytest.fixture(scope="module")
def document(at: Served) -> dict[str, Any]:
    return at.http().get("/openapi.json").json()


def test_every_route_that_takes_a_body_declares_it(at: Served, document: dict[str, Any]) -> None:
    others = re.compile(
        r"/v1/(adapters/|files$|fine_tuning/jobs/.*/(cancel|pause|resume)$|uploads/.*/(parts|cancel)$)"
    )  # files, or nothing
    posts = {path for path, methods in document["paths"].items() if "post" in methods and not others.match(path)}
    assert set(BODIES) == posts
    assert "multipart/form-data" in document["paths"]["/v1/files"]["post"]["requestBody"]["content"]
    for path, kind in BODIES.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        own = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert set(own["properties"]) == {field.alias or name for name, field in kind.model_fields.items()}


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    refs = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert refs and refs <= set(schemas) and "$defs" not in json.dumps(document)


def test_parameters_and_errors_are_declared(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"] and "default" in operation["responses"]
            named = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert named == {name.partition(":")[0] for name in re.findall(r"\{([^}]+)\}", path)}


def test_a_wrong_word_behind_the_question_mark_is_told_in_the_apis_words(at: Served, document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for one in methods.get("get", {}).get("parameters", []):
            if one["in"] == "query" and "{" not in path and one["schema"].get("type") in ("integer", "boolean"):
                for value in ("", "x", "1.5", "-1", "9" * 30, "9" * 5000):
                    answer = at.http().get(path, params={one["name"]: value})
                    error = answer.json()["error"]
                    assert answer.status_code == 400, (path, value)
                    if "trains nothing" not in error["message"]:
                        assert error["param"] == one["name"] and error["message"].startswith(f"{one['name']}: must be")
