"""`python -m sidecar doctor` on real instances: a good one, one that answers wrongly, one that cannot start."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidecar.doctor.client import Answer
from sidecar.doctor.command import NAMES
from sidecar.doctor.load import percentile
from sidecar.doctor.routes import _judge
from sidecar.doctor.service import EMOTIONS
from sidecar.supervisor.lock import InstanceLock
from tests.product import ROOT, Product, until, write_fake


def doctor(home: Path, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
    environment = {**kept, "SIDECAR_HOME": str(home), "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "sidecar", "doctor", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def report(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def levels(found: dict[str, Any], test: str) -> dict[str, str]:
    return {each["what"]: each["level"] for each in found["findings"] if each["test"] == test}


def test_a_good_instance_has_no_failures(product: Product) -> None:
    threshold = product.call("GET", "/api/v1/model/info").json()["threshold"]
    done = doctor(product.home, "--json")
    found = report(done)
    assert done.returncode == 0, [each for each in found["findings"] if each["level"] == "fail"]
    assert found["healthy"] and found["instance"]["base_url"] == product.handshake["base_url"]
    assert not found["instance"]["started"]
    assert {each["test"] for each in found["findings"]} == set(NAMES)
    assert levels(found, "emotion") == dict.fromkeys(EMOTIONS, "ok")
    paths = product.call("GET", "/openapi.json").json()["paths"]
    operations = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(levels(found, "endpoints")) == operations
    [reset] = [each["detail"] for each in found["findings"] if each["what"] == "POST /reset"]
    assert reset == "is there (not called)"
    assert product.call("GET", "/api/v1/model/info").json()["threshold"] == threshold
    refusals = levels(found, "errors")
    assert {"bad JSON", "no token", "a body too large", "a foreign Host"} <= set(refusals)
    assert set(refusals.values()) == {"ok"}
    [together] = [each for each in found["findings"] if each["test"] == "concurrency"]
    assert together["figures"]["outcomes"] == {"200": 100}
    assert product.token not in done.stdout + done.stderr
    assert product.process.poll() is None, "it is left running"


def test_resources_name_what_is_missing_and_its_cure(product: Product) -> None:
    found = report(doctor(product.home, "--json", "--test", "resources"))
    by_name = {each["what"]: each for each in found["findings"]}
    sizes = by_name["memory of ours"]["figures"]["rss_bytes"]
    assert {name.rsplit(" ", 1)[0] for name in sizes} >= {"supervise", "serve", "run minilm"}
    assert f"serve {product.handshake['server']['pid']}" in sizes
    missing = by_name["model bge-small-en-v1.5"]
    assert missing["level"] == "info" and missing["cure"] == "python3 launcher.py models pull bge-small-en-v1.5"
    assert by_name["profile torch"]["cure"] == "python3 launcher.py install --with torch"
    assert by_name["cores"]["figures"]["usable"] >= 1


def test_what_the_user_added_and_half_an_installation_are_warnings(
    launch: Callable[..., Product], tmp_path: Path
) -> None:
    folder = write_fake(tmp_path / "catalogue", more='profile = "torch"')
    one = launch(SIDECAR_CATALOGUE=str(folder))
    (one.home / "env" / "torch-0123456789ab").mkdir(parents=True)
    found = report(doctor(one.home, "--json", "--test", "resources", SIDECAR_CATALOGUE=str(folder)))
    levelled = levels(found, "resources")
    assert levelled["profile torch"] == "warn" and levelled["profile bfa"] == "info"
    assert levelled["model fake"] == "warn" and levelled["model gpt2"] == "info"


def test_without_an_instance_one_is_started_for_as_long_as_it_takes(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--test", "health", "--test", "emotion")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert "(started for this)" in lines[0]
    assert any(line.startswith("ok    emotion      joy: ") for line in lines)
    assert lines[-1] == "10 ok, 0 warnings, 0 failures"
    assert not (tmp_path / "run" / "sidecar.json").exists()
    homes = [(one.info["environ"] or {}).get("SIDECAR_HOME") for one in psutil.process_iter(["environ"])]
    assert str(tmp_path) not in homes


def piped(home: Path, words: str, rest: str) -> "subprocess.CompletedProcess[str]":
    """Through a shell: its exit codes follow the output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
    line = f'"$PYTHON" -m sidecar {words} {rest}; echo "codes ${{PIPESTATUS[*]}}"'
    environment = {**kept, "SIDECAR_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("words", "rest", "codes"),
    [
        ("doctor --test health", "| tail -n 1", "0 0"),
        ("doctor --test health", "| head -n 1", "141 0"),
        ("doctor --json --test health", "| true", "141 0"),
        ("doctor --test health", "| true", "141 0"),
        ("doctor --test health", ">&-", "0"),
        ("doctor --test health", ">&- 2>&- <&-", "0"),
        ("models list", "| true", "141 0"),
        ("status --json", "| true", "141 0"),
    ],
)
def test_pipes_that_close_are_no_fault_of_ours(product: Product, words: str, rest: str, codes: str) -> None:
    done = piped(product.home, words, rest)
    assert not done.stderr, done.stderr
    assert done.stdout.endswith(f"codes {codes}\n"), done.stdout
    if "tail" in rest:
        assert done.stdout.startswith("3 ok, 0 warnings, 0 failures")


def test_two_at_once_examine_one_after_the_other(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
    environment = {**kept, "SIDECAR_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sidecar", "doctor", "--test", "health", "--test", "emotion"]
    turn = InstanceLock(tmp_path / "run" / "doctor.lock")
    assert turn.take()
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in both:
        assert one.stderr and one.stderr.readline() == "ml-sidecar: another doctor is at work here; waiting for it\n"
    turn.release()
    told = [one.communicate(timeout=100) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert all(out.endswith("10 ok, 0 warnings, 0 failures\n") and not err for out, err in told)


def test_wrong_answers_are_failures(launch_fake: Callable[..., Product]) -> None:
    one = launch_fake()
    done = doctor(one.home, "--json", "--test", "emotion")
    found = report(done)
    assert done.returncode == 1 and not found["healthy"]
    failed = [each for each in found["findings"] if each["level"] == "fail"]
    assert failed and all("fake says" in each["detail"] for each in failed)
    assert {each["cure"] for each in failed} == {"python3 launcher.py models verify fake"}


def test_a_model_that_cannot_load_shows(launch_fake: Callable[..., Product]) -> None:
    one = launch_fake(id="minilm", load="fail")  # in place of ours: nothing else can answer
    until(lambda: one.call("GET", "/models/minilm").json()["error"], "it has failed")
    done = doctor(one.home, "--json", "--test", "health", "--test", "resources", "--test", "concurrency")
    found = report(done)
    assert done.returncode == 1
    warnings = [each["detail"] for each in found["findings"] if each["test"] == "health" and each["level"] == "warn"]
    assert any("the fake model was told to fail" in text for text in warnings)
    assert levels(found, "resources")["model minilm"] == "warn"
    assert levels(found, "concurrency")["100 at once"] == "fail"


def test_a_sidecar_that_cannot_start_is_told_with_the_evidence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = doctor(tmp_path, SIDECAR_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stdout.startswith("fail  start        instance: ") and "cure: " in done.stdout


def test_a_full_queue_is_a_warning(launch_fake: Callable[..., Product]) -> None:
    one = launch_fake(item_s=0.2, max_items=1, env={"SIDECAR_QUEUE_SIZE": "10"})
    done = doctor(one.home, "--json", "--test", "concurrency")
    [together] = report(done)["findings"]
    assert done.returncode == 0 and together["level"] == "warn"
    assert together["figures"]["outcomes"]["overloaded"] > 0 and together["cure"] == "raise SIDECAR_QUEUE_SIZE"


def test_a_rate_limit_is_no_failure(launch: Callable[..., Product]) -> None:
    one = launch(RATE_LIMIT_PER_MINUTE="30")
    done = doctor(one.home, "--json", "--test", "performance", "--test", "concurrency")
    latency, together = report(done)["findings"]
    assert done.returncode == 0
    assert latency["level"] == "info" and "RATE_LIMIT_PER_MINUTE" in latency["detail"]
    assert together["level"] == "warn" and together["figures"]["outcomes"]["rate_limited"] > 50


def test_an_unknown_test_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--test", "nonsense")
    assert done.returncode == 2
    assert all(name in done.stderr for name in NAMES)


@pytest.mark.parametrize(
    ("status", "body", "level"),
    [
        (200, b"{}", "ok"),
        (404, b'{"code": "model_not_found", "detail": "none"}', "ok"),
        (503, b'{"code": "model_unavailable", "detail": "none"}', "warn"),
        (500, b'{"code": "internal_error", "detail": "none"}', "fail"),
        (404, b"<html>", "fail"),
        (400, b'{"error": {"message": "no", "type": "invalid_request_error"}}', "ok"),
    ],
)
def test_what_a_route_may_answer(status: int, body: bytes, level: str) -> None:
    assert _judge("GET /x", Answer(status, {}, body, 1.0), expects_refusal=True).level == level


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (0.9, 9), (1.0, 10), (0.01, 1)])
def test_percentiles(share: float, expected: int) -> None:
    assert percentile(range(10, 0, -1), share) == expected
