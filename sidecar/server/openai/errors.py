"""Errors of `/v1/*` in OpenAI's shape: `{"error": {message, type, param, code}}`.

Source: platform.openai.com/docs/guides/error-codes, and what its own Python client reads (`x-should-retry`).
"""

import msgspec

PREFIX = "/v1"
# OpenAI's own names for what its clients look at; every other code is ours.
_CODES = {"unauthorized": "invalid_api_key", "not_found": "unknown_url"}


def speaks_openai(path: str) -> bool:
    """Whether answers on this path have OpenAI's shape."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def openai_status(status: int) -> int:
    """OpenAI knows no 422: what does not fit the schema is a bad request."""
    return 400 if status == 422 else status


def error_body(status: int, code: str, message: str, param: str | None) -> bytes:
    """JSON of an error; `param` is the request's field that is to blame."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "rate_limit_error"
    error = {"message": message, "type": kind, "param": param, "code": _CODES.get(code, code)}
    return msgspec.json.encode({"error": error})
