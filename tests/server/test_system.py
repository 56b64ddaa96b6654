"""System routes on a real server."""

import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.server.problem import from_unexpected
from tests.product import Product, alive, until, write_fake


def test_health_tells_the_truth(product: Product) -> None:
    health = product.call("GET", "/health").json()
    assert health["status"] == "healthy" and health["warnings"] == []
    assert health["instance_id"] == product.handshake["instance_id"]
    loaded = {"emotion": True, "backchannel": True, "embeddings": True, "classify": False}
    assert loaded.items() <= health["models_loaded"].items() and health["model_loaded"] is True
    assert health["device"] == "cpu" and health["device_reason"]
    assert health["queue_size"] == 0 and health["uptime_s"] > 0 and health["timestamp"].endswith("+00:00")


def test_api_health_and_root(product: Product) -> None:
    short = product.call("GET", "/api/health").json()
    assert set(short) == {"status", "models_loaded", "timestamp"}
    assert product.call("GET", "/").json() == {"name": "ml-sidecar", "version": "0.1.0", "status": "healthy"}


def test_health_while_loading_and_when_it_cannot(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    product = launch_fake(load=f"until:{tmp_path}/go", wait=False)
    product.wait("loading")
    assert product.call("GET", "/health").json()["status"] == "starting"
    assert product.call("GET", "/health").json()["models_loaded"]["emotion"] is False
    assert until(lambda: product.handshake["progress"], "load progress in the handshake")["unit"] == "steps"
    (tmp_path / "go").touch()
    product.wait("ready")


def test_a_model_that_cannot_load_degrades_and_says_why(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(load="fail")
    assert product.handshake["phase"] == "degraded"
    health = product.call("GET", "/health").json()
    assert health["status"] == "degraded" and "told to fail" in health["warnings"][0]
    answer = product.call("POST", "/emotion/detect", {"text": "x", "model": "fake"})
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "model_load_failed" and answer.json()["retryable"]
    assert product.emotion("x").json()["model"] == "minilm"


def test_metrics_in_both_forms(product: Product) -> None:
    product.emotion("count me")
    text = product.call("GET", "/metrics").body.decode()
    assert 'sidecar_http_requests_total{route="/emotion/detect",status="200"}' in text
    assert 'sidecar_model_ready{model="minilm"} 1.0' in text
    assert 'sidecar_batch_size_bucket{le="1.0",model="minilm"}' in text
    accept = {"Authorization": f"Bearer {product.token}", "Accept": "application/json"}
    summary = product.call("GET", "/metrics", headers=accept).json()
    assert summary["total_requests"] == summary["completed_requests"] + summary["failed_requests"] > 0
    assert summary["average_processing_time"] > 0


def test_reset_begins_the_summary_anew_and_stops_nothing(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    # No probe of the supervisor is counted, so that the figures are exact.
    product = launch_fake(timeout_s=60.0, max_items=1, env={"SIDECAR_PROBE_INTERVAL": "600"})
    accept = {"Authorization": f"Bearer {product.token}", "Accept": "application/json"}
    for _ in range(3):
        assert product.call("POST", "/api/v1/predict", {"utterance": "mm-hm"}).status == 200
    assert product.call("GET", "/metrics", headers=accept).json()["completed_requests"] >= 3
    assert product.call("GET", "/api/v1/model/info").json()["latency"]["count"] == 3
    assert product.call("PUT", "/api/v1/model/threshold", {"threshold": 0.7}).status == 200
    assert product.call("POST", "/reset", headers={}).status == 401
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(product.emotion, f"!until:{tmp_path}/go") for _ in range(3)]
        until(lambda: product.call("GET", "/health").json()["queue_size"] == 1, "two under way, one behind them")
        answer = product.call("POST", "/reset")
        assert answer.status == 200 and answer.json()["status"] == "reset"
        summary = product.call("GET", "/metrics", headers=accept).json()
        (tmp_path / "go").touch()
        assert [each.result().status for each in asked] == [200, 200, 200]
    assert summary["total_requests"] == summary["completed_requests"] == 1, "the reset itself"
    assert summary["failed_requests"] == 0 and 0 < summary["average_processing_time"] < 1
    assert summary["queue_size"] == 1
    info = product.call("GET", "/api/v1/model/info").json()
    assert info["latency"]["count"] == 0 and info["latency"]["p50_ms"] is None and info["threshold"] == 0.7
    text = product.call("GET", "/metrics").body.decode()
    assert 'sidecar_http_requests_total{route="/api/v1/predict",status="200"} 3.0' in text, "counters never fall"


def test_unknown_paths_make_no_new_metric(product: Product) -> None:
    for number in range(5):
        product.call("GET", f"/nothing-{number}")
    assert "nothing-" not in product.call("GET", "/metrics").body.decode()


def test_events_stream_state_then_changes(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake()
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=20)
    connection.request("GET", "/events", headers={"Authorization": f"Bearer {product.token}"})
    response = connection.getresponse()
    assert response.getheader("content-type", "").startswith("text/event-stream")

    def event() -> tuple[str, dict[str, object]]:
        name = ""
        while line := response.readline().decode().rstrip("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                return name, json.loads(line[6:])
        return event()

    assert event() == ("phase", {"phase": "ready", "restarts": 0, "status": "healthy"})
    present = [event()]
    while present[-1][1]["id"] != "fake":
        present.append(event())
    assert {name for name, _ in present} == {"model"} and present[-1][1]["state"] == "ready"
    runner = product.runner("fake")
    assert runner is not None
    runner.kill()
    seen = [event()]
    while seen[-1] != ("phase", {"phase": "ready", "restarts": 0}):
        seen.append(event())
    assert [data["state"] for name, data in seen if name == "model" and data["id"] == "fake"] == ["loading", "ready"]
    connection.close()


def test_shutdown_over_http(launch: Callable[..., Product]) -> None:
    product = launch(SIDECAR_DRAIN="60")
    streaming = http.client.HTTPConnection("127.0.0.1", product.port, timeout=20)
    streaming.request("GET", "/events", headers={"Authorization": f"Bearer {product.token}"})
    stream = streaming.getresponse()
    started = time.monotonic()
    assert product.call("POST", "/shutdown").status == 202
    assert product.process.wait(60) == 0
    assert time.monotonic() - started < 30, "an open event stream must not hold up the end"
    assert b"stopping" in stream.read()
    assert not (product.home / "run" / "sidecar.json").exists()
    streaming.close()


def test_a_full_queue_answers_503_with_a_computed_retry_after(
    launch_fake: Callable[..., Product], tmp_path: Path
) -> None:
    product = launch_fake(timeout_s=60.0, max_items=1, env={"SIDECAR_QUEUE_SIZE": "8"})
    connections = []
    body = json.dumps({"text": f"!until:{tmp_path}/go"})
    for _ in range(30):
        connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=30)
        connection.request("POST", "/emotion/detect", body, {"Authorization": f"Bearer {product.token}"})
        connections.append(connection)
    refusals = 'sidecar_http_requests_total{route="/emotion/detect",status="503"} 20.0'
    until(lambda: refusals in product.call("GET", "/metrics").body.decode(), "all have been looked at")
    (tmp_path / "go").touch()
    statuses, waits = [], []
    for connection in connections:
        response = connection.getresponse()
        statuses.append(response.status)
        if response.status == 503:
            waits.append(int(response.getheader("retry-after", "0")))
            assert json.loads(response.read())["code"] == "overloaded"
        connection.close()
    assert statuses.count(200) == 10 and statuses.count(503) == 20
    assert all(wait >= 1 for wait in waits)


def test_clients_that_left_are_dropped_from_the_queue(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    product = launch_fake(timeout_s=60.0, max_items=1)

    def ask() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=30)
        connection.request(
            "POST",
            "/emotion/detect",
            json.dumps({"text": f"!until:{tmp_path}/go"}),
            {"Authorization": f"Bearer {product.token}"},
        )
        return connection

    def waiting() -> int:
        return int(product.call("GET", "/health").json()["queue_size"])

    busy = [ask(), ask(), ask()]
    until(lambda: waiting() == 1, "two under way, one behind them")
    # Not those: when one that is under way goes, one of the queue takes its place.
    leaving = [ask() for _ in range(9)]
    until(lambda: waiting() == 10, "the queue fills")
    for connection in leaving:
        connection.close()
    until(lambda: waiting() == 1, "the queue empties")
    assert 'sidecar_items_dropped_total{model="fake"} 9.0' in product.call("GET", "/metrics").body.decode()
    for connection in busy:
        connection.close()


def test_stdin_of_the_server_is_its_life_line(launch: Callable[..., Product]) -> None:
    product = launch()
    tree = product.tree()
    assert len(tree) == 3
    os.kill(product.process.pid, 9)
    until(lambda: not any(map(alive, tree)), "the tree is gone", 15.0)


def test_one_bad_catalogue_file_silences_nobody(launch: Callable[..., Product], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("nonsense")
    product = launch(SIDECAR_CATALOGUE=str(tmp_path))
    health = product.call("GET", "/health").json()
    assert health["status"] == "degraded" and "bad.toml" in health["warnings"][0]
    assert product.emotion("I am so happy today!").json()["emotion"] == "joy"


def test_requests_that_shutdown_cuts_off_get_an_answer(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(item_s=30.0, timeout_s=60.0, env={"SIDECAR_DRAIN": "0.5"})
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(product.emotion, "slow") for _ in range(3)]
        until(lambda: product.call("GET", "/health").json()["queue_size"] >= 1, "all three are in")
        product.process.terminate()
        for answer in answers:
            got = answer.result(20)
            assert got.status == 503 and got.json()["code"] == "shutting_down" and "retry-after" in got.headers
    assert product.process.wait(15) == 0
    assert "Traceback" not in product.log()


def test_retry_after_is_near_the_truth(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(item_s=0.2, max_items=1, env={"SIDECAR_QUEUE_SIZE": "20"})
    with ThreadPoolExecutor(40) as threads:
        for _ in range(10):
            product.emotion("warm up")
        started = time.monotonic()
        answers = list(threads.map(lambda n: (product.emotion(f"t{n}"), time.monotonic()), range(40)))
    took_s = max(at for answer, at in answers if answer.status == 200) - started
    waits = [int(answer.headers["retry-after"]) for answer, _ in answers if answer.status == 503]
    assert waits and took_s / 3 <= max(waits) <= took_s * 3 + 1


def test_a_batch_fits_a_queue_shorter_than_itself(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(item_s=0.001, max_items=1, env={"SIDECAR_QUEUE_SIZE": "2"})
    answer = product.call("POST", "/emotion/detect/batch", {"texts": ["x" * length for length in range(1, 41)]})
    assert answer.status == 200, answer.body
    assert [each["model"] for each in answer.json()["results"]] == ["fake"] * 40


@pytest.mark.parametrize("path", ["/profiles/torch/install", "/align/phonemes", "/emotion/detect"])
def test_a_client_that_goes_within_its_body_is_no_error_of_ours(launch: Callable[..., Product], path: str) -> None:
    product = launch()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}\r\n"
    with socket.create_connection(("127.0.0.1", product.port)) as connection:
        connection.sendall(head.encode() + b'Content-Length: 100\r\n\r\n{"a": ')
    until(lambda: f"POST {path} 400" in product.log(), "it is noticed")
    assert "Traceback" not in product.log()


def test_after_a_fault_of_ours_the_connection_is_used_no_more() -> None:
    """The server cuts it: a client that keeps connections would lose its next request."""
    response = from_unexpected({"type": "http", "method": "GET", "path": "/"}, ValueError("secret"))
    assert response.status_code == 500 and response.headers["connection"] == "close"
    assert b"secret" not in response.body


def test_a_load_on_demand_takes_nothing_from_being_ready(launch: Callable[..., Product], tmp_path: Path) -> None:
    """A host, and the doctor, wait for this phase: it stayed `loading` after the first speech."""
    catalogue = write_fake(tmp_path / "catalogue", load="slow", load_s=2.0, preference=-1)
    product = launch(SIDECAR_CATALOGUE=str(catalogue))
    known = len(product.events)
    assert product.call("POST", "/models/fake/load", b"").status == 200
    until(lambda: any(each["progress"] for each in product.events[known:]), "its progress is told")
    until(lambda: product.handshake["progress"] is None, "and that it is over")
    assert {each["phase"] for each in product.events[known:]} == {"ready"}
