"""HEAD on every GET route, on one kept-open connection, so that a stray body would be read as the next answer."""

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.product import Product

VALUES = {"{model_id}": "minilm", "{model}": "minilm", "{version}": "1", "{name}": "base"}


@pytest.fixture
def connection(product: Product) -> Iterator[http.client.HTTPConnection]:
    one = http.client.HTTPConnection("127.0.0.1", product.port, timeout=10)
    yield one
    one.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]
) -> http.client.HTTPResponse:
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def test_head_answers_as_get_without_a_body(product: Product, connection: http.client.HTTPConnection) -> None:
    auth = {"Authorization": f"Bearer {product.token}"}
    documented = product.call("GET", "/openapi.json").json()["paths"]
    paths = [path for path, methods in documented.items() if "get" in methods]
    assert len(paths) > 15 and "/events" in paths and "/api/v1/model/info" in paths
    for path in [*paths, "/openapi.json", "/models/nothing", "/nowhere"]:
        for part, value in VALUES.items():
            path = path.replace(part, value)
        head = ask(connection, "HEAD", path, auth)
        assert head.read() == b""
        if path == "/events":
            assert head.status == 200 and head.headers["content-type"].startswith("text/event-stream")
            continue
        get = ask(connection, "GET", path, auth)
        body = get.read()
        assert head.status == get.status and body, path
        assert set(head.headers) == set(get.headers), path
        assert head.headers["content-type"] == get.headers["content-type"], path
        assert head.headers["content-length"].isdigit(), path


def test_head_where_only_post_is_served(product: Product, connection: http.client.HTTPConnection) -> None:
    auth = {"Authorization": f"Bearer {product.token}"}
    for path in ("/emotion/detect", "/classify/own", "/shutdown", "/v1/audio/speech"):
        head = ask(connection, "HEAD", path, auth)
        assert head.status == 405 and head.headers["allow"] == "POST" and head.read() == b"", path
    wrong = ask(connection, "POST", "/models", auth)
    assert wrong.status == 405 and wrong.headers["allow"] == "GET, HEAD" and json.loads(wrong.read())


def test_head_is_guarded_and_shared_as_get_is(product: Product, connection: http.client.HTTPConnection) -> None:
    live = ask(connection, "HEAD", "/health/live", {})
    assert live.status == 200 and live.read() == b""
    refused = ask(connection, "HEAD", "/health", {})
    assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer" and refused.read() == b""
    page = {"Authorization": f"Bearer {product.token}", "Origin": "tauri://localhost"}
    shared = ask(connection, "HEAD", "/health", page)
    assert shared.headers["access-control-allow-origin"] == "tauri://localhost" and shared.read() == b""
    asked = {"Origin": "tauri://localhost", "Access-Control-Request-Method": "HEAD"}
    preflight = ask(connection, "OPTIONS", "/health", asked)
    assert preflight.status == 204 and "HEAD" in preflight.headers["access-control-allow-methods"].split(", ")
    assert b'route="/health",status="200"' in product.call("GET", "/metrics").body
