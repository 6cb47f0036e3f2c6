"""ErrorResponse: an error as OpenAI's clients understand it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from polyvera.errors import (
    AccessError,
    BusyError,
    ClosedError,
    FormatError,
    LayoutError,
    NotFoundError,
    PolyveraError,
    PromptError,
    ReferenceNameError,
    SamplingError,
    ServeError,
    SizeError,
    SlowError,
    SpecError,
)

log = logging.getLogger(__name__)
INVALID = "invalid_request_error"
# The first that fits; what stands in no row is a fault of the server's own, of which the client learns no details.
TABLE: tuple[tuple[type[PolyveraError], int, str, str | None], ...] = (
    (NotFoundError, 404, INVALID, "model_not_found"),
    (ReferenceNameError, 400, INVALID, "invalid_name"),
    (SizeError, 413, INVALID, "request_too_large"),
    (SlowError, 408, INVALID, "request_timeout"),
    (BusyError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (ClosedError, 503, "server_error", "unavailable"),
    (SamplingError, 400, INVALID, None),
    (PromptError, 400, INVALID, None),
    (FormatError, 422, INVALID, "invalid_adapter"),
    (LayoutError, 422, INVALID, "invalid_adapter"),
    (SpecError, 422, INVALID, "invalid_adapter"),
    (ServeError, 400, INVALID, None),
)
RETRY_S = 5


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """What a client is told."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, dict(self.headers))


def error_response(error: BaseException, request_id: str) -> ErrorResponse:
    """How any error is told."""
    if isinstance(error, AccessError):
        return _access(error)
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ErrorResponse(error.status_code, str(error.detail), headers=error.headers or {})
    for kind, status, word, code in TABLE:
        if isinstance(error, kind):
            param = "model" if code == "model_not_found" else None
            return ErrorResponse(status, str(error), word, param, code, _retry(error))
    log.error("request %s failed", request_id, exc_info=error)
    return ErrorResponse(500, f"the server failed; it wrote more to its log, under {request_id}", "server_error")


def _access(error: AccessError) -> ErrorResponse:
    if error.is_known:
        return ErrorResponse(403, str(error), "permission_error", code="forbidden")
    headers = {"WWW-Authenticate": "Bearer"}
    return ErrorResponse(401, str(error), "authentication_error", code="invalid_api_key", headers=headers)


def _invalid(error: ValidationError) -> ErrorResponse:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        said = "this server does not know it, and does not pretend to have followed it; leave it out"
    else:
        said = first["msg"].removeprefix("Value error, ")
    return ErrorResponse(400, f"{where}: {said}" if where else said, param=where or None)


def _retry(error: PolyveraError) -> dict[str, str]:
    if isinstance(error, BusyError):
        return {"Retry-After": str(max(1, ceil(error.retry_s)))}
    return {"Retry-After": str(RETRY_S)} if isinstance(error, ClosedError) else {}
