"""The token bucket alone, and on the real product."""

import http.client
import time
from collections.abc import Callable

import pytest

from sidecar.server.ratelimit import RateLimit
from tests.product import Product, until

ORIGIN = "tauri://localhost"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_then_a_steady_rate() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    assert [limit.take(b"a") for _ in range(60)] == [0.0] * 60
    assert limit.take(b"a") == pytest.approx(1.0)
    clock.now += 0.5
    assert limit.take(b"a") == pytest.approx(0.5)
    clock.now += 0.5
    assert limit.take(b"a") == 0.0
    assert limit.take(b"a") == pytest.approx(1.0)


def test_refusals_cost_nothing_and_rest_refills_no_further_than_full() -> None:
    clock = Clock()
    limit = RateLimit(2, clock)
    assert [limit.take(b"a") > 0 for _ in range(9)] == [False] * 2 + [True] * 7
    clock.now += 30.0
    assert [limit.take(b"a") > 0 for _ in range(2)] == [False, True]
    clock.now += 1e6
    assert [limit.take(b"a") > 0 for _ in range(3)] == [False, False, True]


def test_the_wait_that_is_told_is_enough() -> None:
    clock = Clock()
    limit = RateLimit(7, clock)
    granted = 0
    while clock.now < 1000.0 + 600.0:
        wait_s = limit.take(b"a")
        granted += wait_s == 0.0
        clock.now += wait_s and wait_s + 1e-6
    assert 76 <= granted <= 78, "seven at once, and seventy in ten minutes"


def test_clients_have_buckets_of_their_own() -> None:
    limit = RateLimit(1, Clock())
    assert limit.take(b"a") == 0.0 and limit.take(b"b") == 0.0
    assert limit.take(b"a") > 0.0 and limit.take(b"b") > 0.0


def test_memory_is_bounded() -> None:
    limit = RateLimit(5, Clock(), max_clients=100)
    for number in range(10_000):
        limit.take(b"%d" % number)
    assert len(limit) == 100


def test_off_by_default(product: Product) -> None:
    assert {product.call("GET", "/api/health").status for _ in range(200)} == {200}


def test_past_the_limit_429_and_when_to_come_back(launch: Callable[..., Product]) -> None:
    product = launch(RATE_LIMIT_PER_MINUTE="20")
    began = time.monotonic()
    answers = [product.emotion(f"text {number}") for number in range(30)]
    back = int((time.monotonic() - began) / 3) + 1
    assert [answer.status for answer in answers[:20]] == [200] * 20
    refused = [answer for answer in answers if answer.status == 429]
    assert 10 >= len(refused) >= 10 - back, "a token comes back every 3 s"
    problem = refused[0].json()
    assert problem["code"] == "rate_limited" and problem["retryable"] and "RATE_LIMIT_PER_MINUTE" in problem["detail"]
    assert 1 <= int(refused[0].headers["retry-after"]) <= 3
    oip = until(lambda: limited(product, "/v2/models/emotion"), "the limit is for every route")
    assert set(oip.json()) == {"error"}
    until(lambda: product.emotion("again").status == 200, "tokens come back", 20.0)


def limited(product: Product, path: str) -> "object":
    answer = product.call("GET", path)
    return answer if answer.status == 429 else None


def test_pages_and_programs_have_buckets_of_their_own(launch: Callable[..., Product]) -> None:
    product = launch(RATE_LIMIT_PER_MINUTE="5", ALLOWED_ORIGINS="app://other")
    page = {"Authorization": f"Bearer {product.token}", "Origin": ORIGIN}
    # What a client says of itself does not make it another one.
    for number in range(7):
        spoof = {"X-Forwarded-For": f"10.0.0.{number}", "Forwarded": f"for=10.0.0.{number}", "X-Real-IP": "1.2.3.4"}
        answer = product.call("GET", "/models", headers=page | spoof)
    assert answer.status == 429
    assert answer.headers["access-control-allow-origin"] == ORIGIN, "the page must be able to read why"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert product.call("GET", "/models", headers=page | {"Origin": "app://other"}).status == 200
    assert product.call("GET", "/models").status == 200


def test_strangers_take_nothing_from_the_owner(launch: Callable[..., Product]) -> None:
    product = launch(RATE_LIMIT_PER_MINUTE="5")
    for _ in range(20):
        assert product.call("GET", "/models", headers={"Authorization": "Bearer wrong"}).status == 401
        assert product.call("GET", "/models", headers={"Origin": "http://evil.example"}).status == 403
    assert product.call("GET", "/models").status == 200
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert {product.call("OPTIONS", "/models", headers=preflight).status for _ in range(20)} == {204}


def test_probes_and_the_end_are_never_limited(launch: Callable[..., Product]) -> None:
    # A probe that is late on a busy machine kills nobody here: whether one is refused is what counts.
    product = launch(RATE_LIMIT_PER_MINUTE="1", SIDECAR_PROBE_INTERVAL="0.1", SIDECAR_PROBE_MISSES="100000")
    until(lambda: product.call("GET", "/models").status == 429, "used up")
    for path in ("/health", "/health/live", "/api/health", "/v2/health/live", "/v2/health/ready"):
        assert {product.call("GET", path).status for _ in range(10)} == {200}
    # The supervisor has probed many times meanwhile, and was not turned away.
    assert product.handshake["phase"] == "ready" and "status 429" not in product.log()
    assert product.call("POST", "/shutdown").status == 202
    assert product.process.wait(15) == 0


def test_a_refused_body_does_not_break_the_next_request(launch: Callable[..., Product]) -> None:
    product = launch(RATE_LIMIT_PER_MINUTE="2")
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=10)
    statuses = []
    for _ in range(4):
        body = b'{"text": "' + b"x" * 500_000 + b'"}'
        connection.request("POST", "/emotion/detect", body, {"Authorization": f"Bearer {product.token}"})
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()
    assert statuses == [200, 200, 429, 429]
