"""Every failure on `/v1/*` has OpenAI's shape, whoever found it: the gate, the router, the capability, the runner."""

import asyncio
import json
from typing import Any

import pytest

from sidecar.errors import BY_CODE, SidecarError
from sidecar.server.openai.errors import error_body
from sidecar.server.problem import STATUS, from_error
from tests.product import Answer, Product


def check(answer: Answer, status: int, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["x-should-retry"] in ("true", "false")
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, kind) and error["message"]
    return error


def test_no_token(product: Product) -> None:
    answer = product.call("GET", "/v1/models", headers={})
    check(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_unknown_paths_and_methods(product: Product) -> None:
    check(product.call("GET", "/v1/nothing"), 404, "unknown_url")
    check(product.call("GET", "/v1"), 404, "unknown_url")
    check(product.call("DELETE", "/v1/models"), 405, "method_not_allowed")


def test_a_foreign_host(product: Product) -> None:
    headers = {"Host": "evil.example", "Authorization": f"Bearer {product.token}"}
    check(product.call("GET", "/v1/models", headers=headers), 403, "forbidden")


def test_unknown_models(product: Product) -> None:
    assert check(product.call("GET", "/v1/models/gpt-9"), 404, "model_not_found")["param"] == "model"
    absent = check(product.call("GET", "/v1/models/bge-small-en-v1.5"), 404, "model_not_found")
    assert "models pull bge-small-en-v1.5" in absent["message"]
    assert check(product.call("GET", "/v1/models/a/b"), 404, "model_not_found")


def test_other_paths_keep_problem_json(product: Product) -> None:
    for path in ("/nothing", "/v1x"):
        answer = product.call("GET", path)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "not_found"


def test_a_body_over_the_limit(product: Product) -> None:
    answer = product.call("POST", "/v1/models", b"x" * 2_000_001)
    check(answer, 413, "body_too_large")


def sent(error: SidecarError, path: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        raise AssertionError("a response reads nothing")

    asyncio.run(from_error(error)({"type": "http", "path": path}, receive, send))
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    assert int(headers["content-length"]) == len(messages[1]["body"])
    return messages[0]["status"], headers, json.loads(messages[1]["body"])


@pytest.mark.parametrize("code", sorted(STATUS.keys() & BY_CODE.keys()))
def test_every_error_of_ours_has_both_shapes(code: str) -> None:
    error = BY_CODE[code]("told", retry_after_s=7.2)
    status, headers, body = sent(error, "/emotion/detect")
    assert status == STATUS[code] and body["code"] == code and body["detail"] == "told"
    openai_status, openai_headers, openai_body = sent(error, "/v1/embeddings")
    assert openai_status == (400 if status == 422 else status)
    assert openai_body["error"]["message"] == "told"
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    assert openai_body["error"]["type"] == kind
    assert (openai_headers["x-should-retry"] == "true") == body["retryable"]
    if status == 503:
        assert openai_headers["retry-after"] == headers["retry-after"] == "8"


def test_too_many_requests_are_a_rate_limit() -> None:
    assert json.loads(error_body(429, "overloaded", "slow down", None))["error"]["type"] == "rate_limit_error"
