"""Errors as HTTP: RFC 9457 problem details, and OpenAI's shape on its paths. The only place where an error code meets
an HTTP status.
"""

import logging
import math
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.errors import InputError, SidecarError
from sidecar.server.body import PACKINGS
from sidecar.server.fields import Fault, first_fault
from sidecar.server.openai.errors import error_body, openai_status, speaks_openai

log = logging.getLogger("sidecar.server")

STATUS = {
    "invalid_json": 400,
    "bad_request": 400,
    "audio_not_found": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "access_denied": 403,
    "licence_required": 403,
    "pickle_refused": 403,
    "model_not_found": 404,
    "revision_not_found": 404,
    "profile_not_found": 404,
    "profile_needed": 409,
    "profile_busy": 409,
    "profile_failed": 502,
    "download_cancelled": 409,
    "disk_full": 507,
    "cache_read_only": 507,
    "body_timeout": 408,
    "body_too_large": 413,
    "unsupported_encoding": 415,
    "audio_too_long": 413,
    "invalid_audio": 422,
    "invalid_input": 422,
    "poison_input": 422,
    "voice_not_found": 422,
    "timings_not_told": 422,
    "inference_failed": 500,
    "internal_error": 500,
    "config_invalid": 500,
    "runner_crashed": 502,
    "wire_protocol": 502,
    "download_failed": 502,
    "hash_mismatch": 502,
    "model_load_failed": 503,
    "profile_missing": 503,
    "environment_broken": 503,
    "model_unavailable": 503,
    "model_unsupported": 501,
    "out_of_memory": 503,
    "offline": 503,
    "rate_limited": 429,
    "overloaded": 503,
    "shutting_down": 503,
    "runner_timeout": 504,
}
# The request's field that an error is about, where that is always the same.
_BLAMED = {"model_not_found": "model", "voice_not_found": "voice"}
_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Request too large",
    415: "Unsupported media type",
    422: "Request cannot be processed",
    429: "Too many requests",
    500: "Internal error",
    501: "Not supported",
    502: "Model process failed",
    503: "Temporarily unavailable",
    504: "Model process timed out",
    507: "Insufficient storage",
}
MEDIA_TYPE = "application/problem+json"
_OIP = "/v2"


class Problem(Response):
    """problem+json; on a path of OpenAI's API or the Open Inference Protocol it takes their shape when it is sent."""

    def __init__(
        self, status: int, code: str, detail: str, retryable: bool, headers: dict[str, str], param: str | None
    ) -> None:
        body = {
            "type": "about:blank",
            "title": _TITLES.get(status, "Error"),
            "status": status,
            "detail": detail,
            "code": code,
            "retryable": retryable,
        }
        super().__init__(msgspec.json.encode(body), status, headers, MEDIA_TYPE)
        self._code = code
        self._detail = detail
        self._retryable = retryable
        self._param = param

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and speaks_openai(scope["path"]):
            self.status_code = openai_status(self.status_code)
            self._say(error_body(self.status_code, self._code, self._detail, self._param))
            self.headers["x-should-retry"] = "true" if self._retryable else "false"
        elif scope["type"] == "http" and (scope["path"] == _OIP or scope["path"].startswith(f"{_OIP}/")):
            self._say(msgspec.json.encode({"error": self._detail}))
        await super().__call__(scope, receive, send)

    def _say(self, body: bytes) -> None:
        self.body = body
        self.headers["content-type"] = "application/json"
        self.headers["content-length"] = str(len(body))


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    retry_after_s: float | None = None,
    param: str | None = None,
) -> Response:
    """The response for an error; 503 and 429 always carry Retry-After (whole seconds, at least 1)."""
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s or 1.0)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 415:
        headers["Accept-Encoding"] = ", ".join(sorted(PACKINGS))  # RFC 9110, 15.5.16
    return Problem(status, code, detail, retryable, headers, param)


def from_error(error: SidecarError) -> Response:
    """The response for an error of ours."""
    status = STATUS.get(error.code, 500)
    return problem(
        status,
        error.code,
        error.message,
        retryable=error.retryable or status == 503,
        retry_after_s=error.retry_after_s,
        param=(error.field if isinstance(error, InputError) else None) or _BLAMED.get(error.code),
    )


def from_validation(error: ValidationError, sent: Any) -> Response:
    """The response for what does not fit the schema, a value or JSON; names the field, never repeats its value."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        said = _not_utf8(sent) or errors[0]["msg"].removeprefix("Invalid JSON: ")
        return problem(400, "invalid_json", f"the body is no valid JSON: {said}")
    return _unfit(first_fault(errors, sent))


def _not_utf8(sent: bytes) -> str:
    try:
        sent.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 (byte {error.start + 1})"
    return ""


def _unfit(fault: Fault) -> Response:
    more = f" (and {fault.more} more)" if fault.more else ""
    detail = f"{fault.field or 'body'}: {fault.said}{more}"
    return problem(422, "invalid_input", detail, param=fault.field or None)


async def on_sidecar_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SidecarError)
    return from_error(error)


async def on_invalid(request: Request, error: Exception) -> Response:
    """What the framework's own router has found wrong with a request."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    sent = error.body if found[0]["loc"][0] == "body" else {**request.path_params, **request.query_params}
    return _unfit(first_fault([{**each, "loc": each["loc"][1:]} for each in found], sent))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Routing errors of the framework: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    response = problem(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    if "GET" in (allowed := response.headers.get("Allow", "").split(", ")):
        response.headers["Allow"] = ", ".join([*allowed, "HEAD"])
    return response


def from_unexpected(scope: Scope, error: Exception) -> Response:
    """A bug of ours: the traceback goes to the log, its text does not go to the client."""
    log.error("unhandled error in %s %s", scope["method"], scope["path"], exc_info=error)
    response = problem(500, "internal_error", "internal error; the log has the traceback")
    # The framework raises it once more, and the connection is cut: its client must not send the next request on it.
    response.headers["Connection"] = "close"
    return response


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The client went before its body was complete: nobody reads this, and it is no fault of ours."""
    return problem(400, "bad_request", "the client went before its body was complete")


async def on_unexpected(request: Request, error: Exception) -> Response:
    return from_unexpected(request.scope, error)
