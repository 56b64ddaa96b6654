"""Health under failing models, on the real product: never green while something enabled cannot answer."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.product import Answer, Product, alive, until


def health(product: Product) -> Any:
    return product.call("GET", "/health").json()


def model(product: Product) -> Any:
    return product.call("GET", "/models/fake").json()


def pinned(product: Product) -> Answer:
    return product.call("POST", "/emotion/detect", {"text": "x", "model": "fake"})


def oip_ready(product: Product) -> bool:
    return product.call("GET", "/v2/health/ready").status == 200


@contextmanager
def watched(product: Product) -> Iterator[list[str]]:
    """Look at /health all the time: each status once per change, and none that says too much."""
    seen: list[str] = []
    wrong: list[Any] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            answer = health(product)
            if not seen or seen[-1] != answer["status"]:
                seen.append(answer["status"])
            if answer["status"] == "healthy" and not answer["models_loaded"]["emotion"]:
                wrong.append(answer)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
    assert not wrong, wrong[0]


def test_starting_healthy_degraded_healthy(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    product = launch_fake(load=f"fail_while:{broken}", load_s=1.0, wait=False)
    product.wait("loading")
    with watched(product) as seen:
        assert not oip_ready(product)
        product.wait("ready")
        until(lambda: seen[-1] == "healthy", "healthy")
        assert oip_ready(product) and health(product)["failing"] == []
        broken.touch()
        for runner in product.runners():
            runner.kill()
        product.wait("degraded")
        until(lambda: seen[-1] == "degraded", "degraded")
        (failing,) = health(product)["failing"]
        assert failing["id"] == "fake" and failing["state"] in ("failed", "loading")
        assert "told to fail" in failing["error"] and failing["breaker"]["failures"] >= 1
        assert any("told to fail" in line for line in health(product)["warnings"])
        assert not oip_ready(product) and pinned(product).status == 503
        assert product.emotion("x").json()["model"] == "minilm" and oip_ready(product), "the next best answers"
        broken.unlink()
        product.wait("ready")
        until(lambda: seen[-1] == "healthy", "healthy again")
        assert oip_ready(product) and product.emotion("x").json()["model"] == "fake"
    assert seen[0] == "starting" and [each for each in seen if each != "starting"] == ["healthy", "degraded", "healthy"]
    assert model(product)["breaker"] == {"open": False, "failures": 0, "retry_after_s": None}
    assert model(product)["error"] is None


def test_a_broken_model_under_load_starts_no_storm(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    product = launch_fake(load="fail", more_options=f'tally = "{tally}"')
    until(lambda: model(product)["breaker"]["open"], "the breaker is open")
    end = time.monotonic() + 2.0

    def hammer(_: int) -> list[tuple[int, int, str, float]]:
        got = []
        while time.monotonic() < end:
            began = time.monotonic()
            answer = pinned(product)
            took_s = time.monotonic() - began
            got.append((answer.status, int(answer.headers["retry-after"]), answer.json()["code"], took_s))
        return got

    with ThreadPoolExecutor(16) as threads:
        answers = [each for part in threads.map(hammer, range(16)) for each in part]
    loads = len(tally.read_text().splitlines())
    assert loads <= 3, "at 0, after 1 and after 5 s more, however many ask"
    assert len(answers) > 50
    assert {(status, code) for status, _, code, _ in answers} == {(503, "model_load_failed")}
    assert all(1 <= wait <= 5 for _, wait, _, _ in answers)
    took = sorted(took_s for *_, took_s in answers)
    assert took[len(took) // 2] < 1.0, "those who ask while it is closed off wait for nothing"
    shown = model(product)
    assert shown["state"] == "failed" and "told to fail" in shown["error"]
    assert shown["breaker"]["open"] and 0 < shown["breaker"]["retry_after_s"] <= 5
    assert health(product)["status"] == "degraded"
    metrics = product.call("GET", "/metrics").body.decode()
    assert f'sidecar_model_load_failures_total{{model="fake"}} {float(loads)}' in metrics


def test_a_load_that_hangs_is_noticed_and_ended(launch_fake: Callable[..., Product]) -> None:
    # Time enough for the other models, which are sound, to start on a busy machine.
    product = launch_fake(load="hang", env={"SIDECAR_RUNNER_READY_TIMEOUT": "6"}, wait=False)
    product.wait("loading")
    assert health(product)["status"] == "starting" and not oip_ready(product)
    runners = until(lambda: [each for each in product.runners() if "fake" in each.cmdline()], "its runner")
    product.wait("degraded")
    until(lambda: not any(map(alive, runners)), "the hung process is gone")
    shown = model(product)
    assert shown["error"] and "no progress for 6 s" in shown["error"] and shown["state"] in ("failed", "loading")
    answer = pinned(product)
    assert answer.status == 503 and "no progress" in answer.json()["detail"]
    until(lambda: product.emotion("x").json().get("model") == "minilm", "the next best answers")


def test_a_runner_that_ends_again_and_again_degrades(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(more_options="live_s = 0.5", wait=False)
    product.wait("loading")
    with watched(product) as seen:
        product.wait("degraded")
        until(lambda: seen[-1] == "degraded", "told")
    assert "again and again" in " ".join(each["error"] for each in health(product)["failing"])


def test_a_model_that_left_memory_is_no_fault(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake()
    assert product.call("POST", "/models/fake/unload").json()["state"] == "available"
    answer = health(product)
    assert answer["status"] == "healthy" and answer["models_loaded"]["emotion"] is False and oip_ready(product)
    assert product.emotion("x").status == 200
    assert health(product)["models_loaded"]["emotion"] is True
