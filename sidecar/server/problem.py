"""Errors as HTTP: RFC 9457 problem details. The only place where an error code meets an HTTP status."""

import logging
import math

import msgspec
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from sidecar.errors import SidecarError

log = logging.getLogger("sidecar.server")

STATUS = {
    "invalid_json": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "access_denied": 403,
    "licence_required": 403,
    "pickle_refused": 403,
    "model_not_found": 404,
    "revision_not_found": 404,
    "download_cancelled": 409,
    "disk_full": 507,
    "cache_read_only": 507,
    "body_timeout": 408,
    "body_too_large": 413,
    "invalid_input": 422,
    "poison_input": 422,
    "inference_failed": 500,
    "internal_error": 500,
    "config_invalid": 500,
    "runner_crashed": 502,
    "wire_protocol": 502,
    "download_failed": 502,
    "hash_mismatch": 502,
    "model_load_failed": 503,
    "model_unavailable": 503,
    "out_of_memory": 503,
    "offline": 503,
    "overloaded": 503,
    "shutting_down": 503,
    "runner_timeout": 504,
}
_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Request body too large",
    422: "Request cannot be processed",
    500: "Internal error",
    502: "Model process failed",
    503: "Temporarily unavailable",
    504: "Model process timed out",
    507: "Insufficient storage",
}
MEDIA_TYPE = "application/problem+json"


def problem(
    status: int, code: str, detail: str, *, retryable: bool = False, retry_after_s: float | None = None
) -> Response:
    """A problem+json response; 503 and 429 always carry Retry-After (whole seconds, at least 1)."""
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s or 1.0)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
    }
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)


def from_error(error: SidecarError) -> Response:
    """The response for an error of ours."""
    status = STATUS.get(error.code, 500)
    return problem(
        status, error.code, error.message, retryable=error.retryable or status == 503, retry_after_s=error.retry_after_s
    )


def from_validation(error: ValidationError) -> Response:
    """The response for a body that does not fit the schema; names the field, never repeats the value."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return problem(400, "invalid_json", f"the body is no valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return problem(422, "invalid_input", f"{where}: {first['msg']}{more}")


async def on_sidecar_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SidecarError)
    return from_error(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Routing errors of the framework: unknown path, wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    response = problem(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


def from_unexpected(scope: Scope, error: Exception) -> Response:
    """A bug of ours: the traceback goes to the log, its text does not go to the client."""
    log.error("unhandled error in %s %s", scope["method"], scope["path"], exc_info=error)
    return problem(500, "internal_error", "internal error; the log has the traceback")


async def on_unexpected(request: Request, error: Exception) -> Response:
    return from_unexpected(request.scope, error)
