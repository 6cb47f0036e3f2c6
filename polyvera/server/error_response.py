"""ErrorResponse: any error as OpenAI's clients understand it, by one table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from polyvera import errors
from polyvera.errors import BusyError, PolyveraError
from polyvera.server.invalid_body import invalid_body, invalid_query

log = logging.getLogger(__name__)
INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_S = 5
FAILED = "the server failed"
MORE = {logging.ERROR: "; the server's log has more under {}", logging.INFO: ""}
MESSAGES = "/v1/messages"  # the routes of Anthropic's clients
ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """What a client gets."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {name: value and value.encode(errors="replace").decode() for name, value in said.items()}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """Anthropic's shape, with param and code beside."""
        other = "invalid_request_error" if self.status < 500 else "api_error"
        return {"type": "error", "error": {**self.body["error"], "type": ANTHROPIC_TYPES.get(self.status, other)}}

    def response(self, path: str = "") -> JSONResponse:
        """The whole answer, as the clients of that route read it."""
        body = self.anthropic_body if path.startswith(MESSAGES) else self.body
        return JSONResponse(body, self.status, dict(self.headers))


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one class of errors is reported. is_hidden: its words go to the log alone. headers: made of the error.

    words: for a client, where those of the error are for the operator, and go to the log alone; a state that has words
    of its own is logged in a line, all else with where it was raised. level: of the log; what is no error there is
    nothing for a client to ask about, who is not told of the log.
    """

    status: int
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    is_hidden: bool = False
    words: str = FAILED
    level: int = logging.ERROR
    headers: Callable[[Any], Mapping[str, str]] = lambda error: {}

    def response(self, error: BaseException, request_id: str) -> ErrorResponse:
        """The response for an error of this class."""
        message = str(error)
        if self.is_hidden:
            where = error if self.words == FAILED else None
            log.log(self.level, "request %s failed: %s", request_id, message or type(error).__name__, exc_info=where)
            message = self.words + MORE[self.level].format(request_id)
        param = getattr(error, "param", None) or self.param
        return ErrorResponse(self.status, message, self.type, param, self.code, self.headers(error))


def _later(error: Any) -> dict[str, str]:
    return {"Retry-After": str(RETRY_S)}


def _then(error: BusyError) -> dict[str, str]:
    return {"Retry-After": str(max(1, ceil(error.retry_s)))}


def _unavailable(code: str, what: str) -> ErrorRow:
    words = f"{what} at the moment: try again later"
    return ErrorRow(503, SERVER, code, is_hidden=True, words=words, headers=_later)


INTERNAL = ErrorRow(500, SERVER, is_hidden=True)
ADAPTER = ErrorRow(422, code="invalid_adapter")
# Every class of errors has its own row: a new one is a decision, and no parent's row hides that it was not made.
TABLE: dict[type[PolyveraError], ErrorRow] = {
    errors.PolyveraError: INTERNAL,
    errors.SpecError: ADAPTER,
    errors.TargetError: ADAPTER,
    errors.BasisError: ADAPTER,
    errors.SlotError: INTERNAL,
    errors.LayoutError: ADAPTER,
    errors.FingerprintError: ErrorRow(404, code="model_not_found", param="model"),
    errors.FormatError: ADAPTER,
    errors.DamagedFileError: ErrorRow(500, SERVER, "adapter_damaged"),
    errors.StoreError: ErrorRow(500, SERVER, "store_error", is_hidden=True, words="the store cannot do this"),
    errors.ConflictError: ErrorRow(409, code="conflict"),
    errors.StoreFullError: ErrorRow(507, SERVER, "store_full", is_hidden=True, words="the store is full"),
    errors.StoreUnavailableError: _unavailable("store_unavailable", "the store cannot be reached"),
    errors.ReferenceNameError: ErrorRow(400, code="invalid_name"),
    errors.NotFoundError: ErrorRow(404, code="model_not_found", param="model"),
    errors.UnpublishedNameError: ErrorRow(
        404, code="model_not_found", param="model", is_hidden=True, words="the model does not exist", level=logging.INFO
    ),
    errors.UnknownObjectError: ErrorRow(404, code="not_found"),
    errors.ServeError: ErrorRow(400),
    errors.SamplingError: ErrorRow(400),
    errors.ContextLengthError: ErrorRow(400, code="context_length_exceeded"),
    errors.BusyError: ErrorRow(429, "rate_limit_error", "rate_limit_exceeded", headers=_then),
    errors.QuotaError: ErrorRow(429, "insufficient_quota", "insufficient_quota", headers=_then),
    errors.SizeError: ErrorRow(413, code="request_too_large"),
    errors.SlowError: ErrorRow(408, code="request_timeout"),
    errors.ClosedError: ErrorRow(503, SERVER, "unavailable", headers=_later),
    errors.DisconnectedError: ErrorRow(499, code="disconnected"),  # nginx' number; nobody reads it
    errors.KeyFileError: _unavailable("unavailable", "API keys cannot be checked"),
    errors.AccessError: ErrorRow(
        401, "authentication_error", "invalid_api_key", headers=lambda error: {"WWW-Authenticate": "Bearer"}
    ),
    errors.ForbiddenError: ErrorRow(403, "permission_error", "forbidden"),
    errors.EngineError: INTERNAL,
    errors.NonFiniteError: ErrorRow(500, SERVER),
    errors.DataError: INTERNAL,
    errors.PromptError: ErrorRow(400),
    errors.RecipeError: INTERNAL,
    errors.DivergedError: INTERNAL,
}


def error_response(error: BaseException, request_id: str) -> ErrorResponse:
    """How any error is reported."""
    match error:
        case PolyveraError():
            return TABLE[type(error)].response(error, request_id)
        case ValidationError():
            message, param = invalid_body(error)
            return ErrorResponse(400, message, param=param)
        case RequestValidationError():
            message, param = invalid_query(error)
            return ErrorResponse(400, message, param=param)
        case HTTPException():
            return ErrorResponse(error.status_code, str(error.detail), headers=error.headers or {})
    return replace(INTERNAL.response(error, request_id), headers={"Connection": "close"})  # Starlette raises it again
