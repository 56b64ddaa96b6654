"""The gate, from outside, on a real server."""

import json
import resource
import socket
from collections.abc import Callable

import pytest

from tests.product import Answer, Product

GOOD_ORIGIN = "tauri://localhost"
_OF_OPENAI = ("arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version", "timeout")
STAINLESS = ",".join(["authorization", "content-type", *(f"x-stainless-{name}" for name in _OF_OPENAI)])
"""What a browser asks for on behalf of OpenAI's npm client."""


def auth(product: Product, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {product.token}", **more}


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/models", "/events", "/openapi.json", "/nope"])
def test_everything_but_liveness_wants_the_token(product: Product, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": product.token}):
        answer = product.call("GET", path, headers=headers)
        assert answer.status == 401, headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == "unauthorized" and problem["status"] == 401 and not problem["retryable"]
        assert product.token not in answer.body.decode()


def test_liveness_needs_no_token_and_says_nothing(product: Product) -> None:
    answer = product.call("GET", "/health/live", headers={})
    assert answer.status == 200 and answer.json() == {"status": "alive"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost:{port}.evil.example"]
)
@pytest.mark.parametrize("path", ["/health/live", "/health"])
def test_a_foreign_host_is_refused_before_anything_else(product: Product, host: str, path: str) -> None:
    answer = product.call("GET", path, headers=auth(product, Host=host.format(port=product.port)))
    assert answer.status == 403 and answer.json()["code"] == "forbidden"


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}"])
def test_loopback_hosts_are_let_in(product: Product, host: str) -> None:
    assert product.call("GET", "/health", headers=auth(product, Host=host.format(port=product.port))).status == 200


def test_a_missing_host_is_refused(product: Product) -> None:
    with socket.create_connection(("127.0.0.1", product.port), timeout=10) as connection:
        connection.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "tauri://localhost.evil.example", "http://tauri.localhost:80", "file://"]
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_foreign_origins_are_refused(product: Product, origin: str, method: str) -> None:
    answer = product.call(method, "/health", headers=auth(product, Origin=origin))
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [GOOD_ORIGIN, "http://tauri.localhost", "https://tauri.localhost"])
def test_desktop_origins_are_let_in_with_cors(product: Product, origin: str) -> None:
    preflight = product.call(
        "OPTIONS", "/emotion/detect", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    answer = product.call("GET", "/health", headers=auth(product, Origin=origin))
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == origin
    assert "Origin" in answer.headers["vary"]
    # An error must be readable to the page as well.
    refused = product.call("GET", "/health", headers={"Origin": origin})
    assert refused.status == 401 and refused.headers["access-control-allow-origin"] == origin


def test_a_preflight_lets_the_headers_of_openais_client_through(product: Product) -> None:
    def preflight(origin: str, asked: str) -> Answer:
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
        return product.call("OPTIONS", "/v1/audio/speech", headers={"Origin": origin, **wanted})

    answer = preflight(GOOD_ORIGIN, STAINLESS)
    assert answer.status == 204 and answer.headers["access-control-allow-headers"] == STAINLESS
    fixed = "Authorization, Content-Type, X-Request-ID"
    for nonsense in ("", "*", "a b", "x-a,,x-b", "x-a, *", "x" * 2049, "x-" + "é", "x,x" * 700):
        assert preflight(GOOD_ORIGIN, nonsense).headers["access-control-allow-headers"] == fixed, nonsense[:20]
    foreign = preflight("https://evil.example", STAINLESS)
    assert foreign.status == 403 and not [name for name in foreign.headers if name.startswith("access-control-")]
    spoken = product.call("POST", "/v1/audio/speech", {"input": "Hi."}, auth(product, Origin=GOOD_ORIGIN))
    exposed = {name.strip().lower() for name in spoken.headers["access-control-expose-headers"].split(",")}
    assert {"x-model", "x-voice", "x-sample-rate"} <= exposed and spoken.headers["x-model"] == "espeak-ng"


def test_registered_origins_are_let_in(launch: Callable[..., Product]) -> None:
    product = launch(ALLOWED_ORIGINS="app://my-app,http://localhost:5173")
    assert product.call("GET", "/health", headers=auth(product, Origin="app://my-app")).status == 200
    assert product.call("GET", "/health", headers=auth(product, Origin="http://localhost:5174")).status == 403


def test_auth_off_serves_local_programs_but_no_browser(launch: Callable[..., Product]) -> None:
    product = launch("--auth", "off")
    assert product.handshake["token"] is None
    assert product.call("POST", "/emotion/detect", {"text": "what a lovely day"}, headers={}).status == 200
    assert product.call("GET", "/health", headers={"Origin": GOOD_ORIGIN}).status == 403
    assert product.call("GET", "/health", headers={"Host": "evil.example"}).status == 403


def test_a_body_of_100_mb_is_refused_and_read_to_its_end(product: Product) -> None:
    server = product.server()
    before = server.memory_info().rss
    answer = product.call("POST", "/emotion/detect", b"x" * 100_000_000, headers=auth(product))
    assert answer.status == 413
    problem = answer.json()
    assert problem["code"] == "body_too_large" and "SIDECAR_MAX_BODY_BYTES" in problem["detail"]
    assert server.memory_info().rss - before < 20 << 20


def test_a_chunked_body_over_the_limit_is_refused(product: Product) -> None:
    with socket.create_connection(("127.0.0.1", product.port), timeout=20) as connection:
        head = f"POST /emotion/detect HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\n"
        connection.sendall(
            f"{head}Authorization: Bearer {product.token}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(50):
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("length", ["-1", "abc", "99999999999999999999", "3\r\nContent-Length: 4"])
def test_a_nonsense_content_length_is_a_problem_like_others(product: Product, length: str) -> None:
    with socket.create_connection(("127.0.0.1", product.port), timeout=10) as connection:
        head = f"POST /emotion/detect HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer {product.token}\r\nContent-Length: {length}\r\n\r\n".encode())
        with connection.makefile("rb") as reader:
            head, _, body = reader.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "bad_request" and f"content-length: {len(body)}".encode() in head
    assert product.emotion("still fine").status == 200


def test_request_ids_are_kept_or_made(product: Product) -> None:
    kept = product.call("GET", "/health", headers=auth(product, **{"X-Request-ID": "my-id.7"}))
    assert kept.headers["x-request-id"] == "my-id.7"
    made = product.call("GET", "/health", headers=auth(product, **{"X-Request-ID": "bad id\t!" + "x" * 100}))
    assert made.headers["x-request-id"] != "my-id.7" and len(made.headers["x-request-id"]) == 16


def test_nothing_secret_is_logged(launch: Callable[..., Product]) -> None:
    product = launch()
    secret_text = "my diary says zanzibar-4711"
    product.emotion(secret_text)
    product.call("POST", "/emotion/detect", f'{{"text": "{secret_text}"', headers=auth(product))
    product.call("POST", "/emotion/detect", {"txt": secret_text})
    product.call("GET", f"/health?token={product.token}&q={secret_text.replace(' ', '+')}")
    product.call("GET", "/nope", headers={"Authorization": "Bearer guess-0815", "Origin": "http://spy.example"})
    token = product.token
    files = [path for path in product.home.rglob("*") if path.is_file()]
    assert product.close() == 0
    log = product.log()
    assert "POST /emotion/detect 200" in log and "GET /nope 403" in log
    for word in (token, "zanzibar", "guess-0815", "4711"):
        assert word not in log
    # The token is in the handshake file while it runs, and nowhere else.
    for path in files:
        if path.exists():
            assert token.encode() not in path.read_bytes(), path


def test_the_token_is_not_in_any_command_line(product: Product) -> None:
    for process in product.tree():
        assert product.token not in " ".join(process.cmdline())
        if process.pid not in (product.process.pid, product.server().pid):
            assert product.token not in json.dumps(process.environ())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Host", ["evil.example", "127.0.0.1:{port}"]),
        ("Origin", ["null", GOOD_ORIGIN]),
        ("Authorization", ["Bearer x", "Bearer {token}"]),
    ],
)
def test_what_decides_about_access_may_not_be_given_twice(product: Product, name: str, values: list[str]) -> None:
    lines = {"Host": ["127.0.0.1:{port}"], "Authorization": ["Bearer {token}"], name: values}
    head = "".join(f"{key}: {value}\r\n" for key, each in lines.items() for value in each)
    answer = raw(product, f"GET /health HTTP/1.1\r\n{head}Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ") and b"bad_request" in answer


def test_an_offer_of_h2c_does_not_lose_the_body(product: Product) -> None:
    body = '{"text": "I am so happy today!"}'
    head = (
        f"POST /emotion/detect HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}\r\n"
        "Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    )
    answer = raw(product, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"emotion":"joy"' in answer


def test_idle_connections_do_not_starve_the_server(launch: Callable[..., Product]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        product = launch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    idle = [socket.create_connection(("127.0.0.1", product.port)) for _ in range(300)]
    assert product.emotion("I am so happy today!").status == 200
    for connection in idle:
        connection.close()


def test_a_refused_request_need_not_be_sent_to_its_end(product: Product) -> None:
    head = f"POST /emotion/detect HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nExpect: 100-continue\r\n"
    answer = raw(product, f"{head}Content-Length: 100000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 "), answer


def raw(product: Product, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", product.port), timeout=10) as connection:
        connection.sendall(request.encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer
