"""Metrics of the real product, read by Prometheus' own parser."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.server.accesslog import AccessLog
from sidecar.server.metrics import Metrics
from sidecar.server.security import Gate
from tests.hub import Hub
from tests.product import ROOT, Product, until, write_fake, write_hub_fake


def scrape(product: Product) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = product.call("GET", "/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(product: Product, name: str, **labels: str) -> float | None:
    return scrape(product).get((name, frozenset(labels.items())))


def test_items_batches_and_their_times(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(item_s=0.02, max_items=4)
    began = time.monotonic()
    with ThreadPoolExecutor(12) as threads:
        assert {answer.status for answer in threads.map(product.emotion, [f"text {n}" for n in range(24)])} == {200}
    took_s = time.monotonic() - began
    seen = scrape(product)
    model = frozenset({("model", "fake")})

    def bucket(name: str, le: str) -> float:
        return seen[f"{name}_bucket", model | {("le", le)}]

    assert seen["sidecar_items_total", model] == seen["sidecar_queue_seconds_count", model] == 24
    assert seen["sidecar_batch_size_sum", model] == 24
    batches = seen["sidecar_batch_size_count", model]
    assert 6 <= batches <= 24 and seen["sidecar_batch_seconds_count", model] == batches
    assert bucket("sidecar_batch_size", "4.0") == batches, "never more than four"
    # 20 ms an item, one batch at a time, so twelve at a time wait for one another.
    assert 0.02 * 24 <= seen["sidecar_batch_seconds_sum", model] <= took_s
    # Two that a busy server finds answered at once count as one that took long and one that took nothing.
    assert bucket("sidecar_batch_seconds", "0.01") <= batches / 2
    assert seen["sidecar_queue_seconds_sum", model] > 0.5
    route = frozenset({("route", "/emotion/detect")})
    assert seen["sidecar_http_request_seconds_count", route] == 24
    assert seen["sidecar_http_requests_total", route | {("status", "200")}] == 24
    assert seen["sidecar_http_request_seconds_bucket", route | {("le", "+Inf")}] == 24


def test_waiting_for_a_load_is_queue_time_and_not_the_models(
    launch_fake: Callable[..., Product], tmp_path: Path
) -> None:
    product = launch_fake(load=f"until:{tmp_path}/go", wait=False)
    product.wait("loading")
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        early = threads.submit(product.emotion, "early")
        until(lambda: product.call("GET", "/models/fake").json()["state"] == "loading" and not early.done(), "it loads")
        time.sleep(2.0)
        (tmp_path / "go").touch()
        assert early.result().status == 200
        took_s = time.monotonic() - began
    model = frozenset({("model", "fake")})
    seen = scrape(product)
    assert seen["sidecar_queue_seconds_sum", model] > 1.0
    both_s = seen["sidecar_queue_seconds_sum", model] + seen["sidecar_batch_seconds_sum", model]
    assert both_s <= took_s, "no moment is counted twice"


def test_loads_unloads_restarts_and_memory(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(preference=500)
    assert value(product, "sidecar_model_loads_total", model="fake") == 1
    until(lambda: (value(product, "sidecar_model_resident_bytes", model="fake") or 0) > 1 << 20, "measured")
    product.call("POST", "/models/fake/unload")
    assert value(product, "sidecar_model_resident_bytes", model="fake") == 0
    assert value(product, "sidecar_model_unloads_total", model="fake", reason="asked") == 1
    product.call("POST", "/emotion/detect", {"text": "x", "keep_alive": 0})
    until(lambda: value(product, "sidecar_model_unloads_total", model="fake", reason="idle") == 1, "idle")
    product.call("POST", "/emotion/detect", {"text": "back again", "keep_alive": -1})
    pid = product.call("GET", "/models/fake").json()["pid"]
    next(each for each in product.runners() if each.pid == pid).kill()
    until(lambda: value(product, "sidecar_runner_restarts_total", model="fake") == 1, "restarted")
    until(lambda: value(product, "sidecar_model_ready", model="fake") == 1, "ready")
    assert value(product, "sidecar_model_loads_total", model="fake") == 4
    assert value(product, "sidecar_model_load_failures_total", model="fake") == 0


def test_evictions_are_told_apart(launch: Callable[..., Product], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_fake(tmp_path / "cat", id=name, ballast_mb=20, memory_mb=400, preference=-1)
    product = launch(SIDECAR_CATALOGUE=str(tmp_path / "cat"), SIDECAR_MEMORY_BUDGET=str(450 << 20))
    for name in ("one", "two"):
        answer = product.call("POST", "/emotion/detect", {"text": "x", "model": name})
        assert answer.json()["model"] == name
    assert (value(product, "sidecar_model_unloads_total", model="one", reason="evicted") or 0) + (
        value(product, "sidecar_model_unloads_total", model="minilm", reason="evicted") or 0
    ) >= 1


def test_bytes_of_downloads(launch: Callable[..., Product], tmp_path: Path) -> None:
    write_hub_fake(tmp_path, "better")
    with Hub() as hub:
        hub.add("tiny/better", {"weights.safetensors": b"\0" * 300_000})
        product = launch(SIDECAR_CATALOGUE=str(tmp_path), HF_ENDPOINT=hub.url)
        assert value(product, "sidecar_downloaded_bytes_total", model="better") is None
        product.call("POST", "/models/better/download")
        until(lambda: product.call("GET", "/models/better").json()["state"] == "ready", "downloaded and loaded")
    assert value(product, "sidecar_downloaded_bytes_total", model="better") == 300_000


def test_refusals_of_the_rate_limit(launch: Callable[..., Product]) -> None:
    product = launch(RATE_LIMIT_PER_MINUTE="5")
    refused = [product.emotion("x").status for _ in range(15)].count(429)
    assert refused >= 9
    until(lambda: product.call("GET", "/metrics").status == 200, "a token for the scrape", 30.0, pause_s=0.5)
    until(lambda: "sidecar_rate_limited_total" in product.call("GET", "/metrics").body.decode(), "told", 30.0, 0.5)


def test_open_websockets_are_counted() -> None:
    metrics = Metrics()
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(metrics.websockets)
        if scope["path"] == "/broken":
            raise RuntimeError("a bug")

    gate = Gate(
        app, token="t", port=1, origins=(), max_body_bytes=1024, metrics=metrics, access=AccessLog(enabled=False)
    )
    headers = [(b"host", b"127.0.0.1:1"), (b"sec-websocket-protocol", b"bearer.t")]

    async def connect(path: str) -> None:
        async def nothing(*_: Any) -> Any:
            return {}

        await gate({"type": "websocket", "path": path, "headers": headers}, nothing, nothing)

    asyncio.run(connect("/ws"))
    with pytest.raises(RuntimeError):
        asyncio.run(connect("/broken"))
    assert seen == [1, 1] and metrics.websockets == 0
    assert metrics.summary(0)["active_websocket_connections"] == 0
    assert b"sidecar_websocket_connections 0.0" in metrics.text()


def test_every_family_is_in_the_readme(product: Product) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = product.call("GET", "/metrics").body.decode()
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        suffix = name.removeprefix("sidecar_items").removesuffix("_total")
        assert f"`{name}`" in readme or f"`{suffix}`" in readme, name
