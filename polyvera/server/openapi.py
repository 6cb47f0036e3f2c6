"""The description of the API: every route with the body that it reads, for clients that are generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from polyvera.server import requests
from polyvera.server.job_requests import CompleteBody, FineTuningBody, UploadBody
from polyvera.server.message_body import CountBody, MessageBody
from polyvera.server.request_body import RequestBody
from polyvera.server.response_body import ResponseBody
from polyvera.server.routes.scores import RERANK_PATHS, SCORE_PATHS
from polyvera.server.score_bodies import RerankBody, ScoreBody

REF = "#/components/schemas/{model}"
BODIES: Mapping[str, type[RequestBody]] = {
    "/v1/completions": requests.CompletionBody,
    "/v1/chat/completions": requests.ChatBody,
    "/v1/responses": ResponseBody,
    "/v1/messages": MessageBody,
    "/v1/messages/count_tokens": CountBody,
    "/v1/embeddings": requests.EmbeddingBody,
    "/v1/classify": requests.ClassifyBody,
    **dict.fromkeys(SCORE_PATHS, ScoreBody),
    **dict.fromkeys(RERANK_PATHS, RerankBody),
    "/tokenize": requests.TokenizeBody,
    "/detokenize": requests.DetokenizeBody,
    "/v1/load_lora_adapter": requests.LoadBody,
    "/v1/unload_lora_adapter": requests.UnloadBody,
    "/v1/aliases": requests.AliasBody,
    "/v1/fine_tuning/jobs": FineTuningBody,
    "/v1/uploads": UploadBody,
    "/v1/uploads/{id}/complete": CompleteBody,
}
FILES = "/v1/adapters/{name}"
BINARY: Mapping[str, Any] = {"type": "string", "format": "binary"}
PURPOSE: Mapping[str, Any] = {"type": "string", "enum": ["fine-tune"]}
FORMS: Mapping[str, Mapping[str, Any]] = {
    "/v1/files": {"file": BINARY, "purpose": PURPOSE},
    "/v1/uploads/{id}/parts": {"data": BINARY},
}
ERROR: Mapping[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(app: FastAPI, version: str) -> dict[str, Any]:
    """The whole app as an OpenAPI document."""
    document = get_openapi(title="polyvera", version=version, routes=app.routes)
    kinds = [(kind, "validation") for kind in dict.fromkeys(BODIES.values())]
    names, schemas = models_json_schema(kinds, ref_template=REF)  # type: ignore[arg-type]
    parts = document.setdefault("components", {})
    parts["schemas"] = {**parts.get("schemas", {}), **schemas.get("$defs", {}), "Error": dict(ERROR)}
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}, {}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(path, method, operation, names)
    return document


def _complete(path: str, method: str, operation: dict[str, Any], names: Mapping[Any, Any]) -> None:
    """The body and the errors of one operation."""
    kind = BODIES.get(path)
    if kind is not None and method == "post":
        content = {"application/json": {"schema": names[(kind, "validation")]}}
        operation["requestBody"] = {"required": True, "content": content}
    elif path.startswith(FILES) and method in ("post", "put"):
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    elif path in FORMS and method == "post":
        schema = {"type": "object", "required": [*FORMS[path]], "properties": dict(FORMS[path])}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    error = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
    operation["responses"] = {
        **{code: told for code, told in operation["responses"].items() if code != "422"},
        "default": {"description": "What went wrong.", "content": error},
    }
