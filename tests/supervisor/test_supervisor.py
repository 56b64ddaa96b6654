"""The run loop, by a real supervisor around a real (stand-in) server."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jsonschema import Draft202012Validator

from sidecar.errors import EXIT_BAD_CONFIG, EXIT_PART_MISSING
from sidecar.supervisor.handshake import HandshakeFile, Process
from tests.supervisor.conftest import Start
from tests.supervisor.harness import (
    FIXTURES,
    SUPERVISE,
    ask,
    environment_of,
    is_running,
    run_python,
    server_pid,
    until,
    until_ready,
)
from tests.supervisor.test_handshake import make

SCHEMA = Draft202012Validator(json.loads((FIXTURES.parents[1] / "clients" / "handshake.schema.json").read_text()))
INSTANT = {"SIDECAR_RESTART_DELAYS": "0", "SIDECAR_RESTART_LIMIT": "1000"}


def check_schema(events: list[dict[str, Any]]) -> None:
    for event in events:
        SCHEMA.validate(event)
        assert event.keys() == set(SCHEMA.schema["required"])  # type: ignore[index]


# The good life


def test_start_serve_stop(start: Start) -> None:
    running = start("--events", standin="progress")
    ready = running.until_phase()
    assert ask(ready, "GET", "/health")[1]["instance_id"] == ready.instance_id
    assert ready.supervisor.is_alive() and ready.server is not None and ready.server.is_alive()
    assert (ready.device, ready.device_reason) == ("cpu", "the stand-in has no other")
    assert ready.token is not None and len(ready.token) == 64
    assert running.file.path.stat().st_mode & 0o777 == 0o600
    assert running.file.path.parent.stat().st_mode & 0o777 == 0o700
    running.process.terminate()
    assert running.wait() == 0
    assert not running.file.path.exists()
    assert running.phases() == ["starting", "loading", "downloading", "ready", "stopping"]
    check_schema(running.events)
    assert not is_running(server_pid(ready))
    assert ready.token not in running.log() + running.stderr()


def test_the_token_is_in_no_command_line_and_in_no_log(start: Start) -> None:
    running = start(standin="say_token")
    ready = running.until_phase()
    assert ready.token is not None
    for pid in (running.pid, server_pid(ready)):
        assert ready.token not in " ".join(psutil.Process(pid).cmdline())
    until(lambda: "the token is [token]" in running.log())
    assert ready.token not in running.log()


def test_auth_off_has_no_token(start: Start) -> None:
    ready = start("--auth", "off").until_phase()
    assert ready.token is None
    assert ask(ready, "GET", "/health")[0] == 200


def test_degraded_counts_as_healthy_and_rubbish_from_the_server_is_logged(start: Start) -> None:
    running = start(standin="degraded noise")
    running.until_phase("degraded")
    until(lambda: "sleepy" in running.log() and "after the long line" in running.log())
    log = running.log()
    assert "[server stdout] no json" in log and "unheard of" in log


def test_fixed_port_and_a_taken_one(start: Start, tmp_path: Path) -> None:
    first = start("--port", "0").until_phase()
    second = start("--port", str(first.port), home=tmp_path / "other")
    assert second.wait() == 78
    message = second.stderr()
    assert str(first.port) in message and "--port" in message and message.count("\n") == 1
    assert not second.file.path.exists()


def test_a_stale_handshake_is_replaced(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "home" / "run"
    run_dir.mkdir(parents=True)
    dead = run_python("")
    stale = Process.of(dead.pid) or Process(dead.pid, time.time())
    dead.wait()
    HandshakeFile(run_dir / "sidecar.json").write(make(supervisor=stale))
    assert start().until_phase().instance_id != make().instance_id


def test_idle_costs_nothing(start: Start) -> None:
    running = start()
    running.until_phase()
    process = psutil.Process(running.pid)
    switches = process.num_ctx_switches().voluntary
    assert process.cpu_percent(interval=1.0) <= 2  # clock ticks of 10 ms: 0, 1 or, on the edge, 2 of them
    assert process.num_ctx_switches().voluntary - switches <= 5


# Crashes


def test_killed_servers_refuse_nobody_and_keep_the_port(start: Start) -> None:
    running = start(**INSTANT)
    ready = running.until_phase()
    refused: list[OSError] = []
    connected = [0]
    done = threading.Event()

    def connect() -> None:
        while not done.is_set():
            try:
                with socket.create_connection((ready.host, ready.port), 5):
                    connected[0] += 1
            except ConnectionRefusedError as error:
                refused.append(error)
            done.wait(0.005)

    clients = [threading.Thread(target=connect) for _ in range(4)]
    for client in clients:
        client.start()
    pid = server_pid(ready)
    for count in range(1, 11):
        os.kill(pid, signal.SIGKILL)
        back = running.until_server_after(pid)
        pid = server_pid(back)
        assert (back.port, back.token, back.instance_id) == (ready.port, ready.token, ready.instance_id)
        assert back.restarts.count == count
        assert back.last_exit is not None and (back.last_exit.code, back.last_exit.signal) == (None, "SIGKILL")
    done.set()
    for client in clients:
        client.join()
    assert not refused
    assert connected[0] > 50


def test_a_request_waits_in_the_backlog_for_the_next_server(start: Start) -> None:
    running = start(SIDECAR_RESTART_DELAYS="2")  # long enough to be seen
    ready = running.until_phase()
    os.kill(server_pid(ready), signal.SIGKILL)
    restarting = running.until_phase("restarting", server=None)
    assert ask(restarting, "GET", "/health", timeout_s=15.0)[0] == 200


@pytest.mark.parametrize("code", [EXIT_BAD_CONFIG, EXIT_PART_MISSING])
def test_bad_configuration_and_missing_parts_are_not_restarted(start: Start, code: int) -> None:
    running = start("--events", standin=f"exit={code}")
    assert running.wait() == code
    left = running.file.read()
    assert left is not None and left.phase == "failed" and left.server is None
    assert left.last_exit is not None and left.last_exit.code == code
    assert running.phases()[-1] == "failed" and "restarting" not in running.phases()
    assert "told to end" in left.last_exit.stderr_tail and "told to end" in running.stderr()


def test_crash_loop_fails_with_evidence_and_the_next_start_replaces_it(start: Start, tmp_path: Path) -> None:
    fickle = tmp_path / "broken"
    fickle.touch()
    settings = {"SIDECAR_RESTART_DELAYS": "0,0.05", "SIDECAR_RESTART_LIMIT": "3"}
    running = start("--events", standin=f"fickle={fickle}", **settings)
    assert running.wait() == 1
    left = running.file.read()
    assert left is not None and left.phase == "failed"
    assert left.restarts.count == 3
    assert left.last_exit is not None and left.last_exit.code == 1
    assert "told to end" in left.last_exit.stderr_tail
    assert running.phases()[-1] == "failed" and "restarting" in running.phases()
    check_schema(running.events)
    assert "3 crashes" in running.stderr()
    assert running.role("status").returncode == 3
    fickle.unlink()
    assert start(standin=f"fickle={fickle}", **settings).until_phase().restarts.count == 0


def test_healthy_time_clears_the_count(start: Start) -> None:
    running = start("--events", **INSTANT, SIDECAR_RESTART_RESET="0.3")
    os.kill(server_pid(running.until_phase()), signal.SIGKILL)
    # By the events, of which none is missed: the file may be two states further at the next look.
    until(lambda: any(event["restarts"]["count"] == 1 for event in running.events))
    until(lambda: running.events[-1]["phase"] == "ready" and running.events[-1]["restarts"]["count"] == 0)


def test_a_server_that_cannot_be_started_at_all(tmp_path: Path) -> None:
    source = (
        "import sys; from sidecar.supervisor.cli import main_supervise;"
        "sys.exit(main_supervise([], command=['/no/where']))"
    )
    process = run_python(source, env=environment_of(tmp_path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 1
    left = HandshakeFile(tmp_path / "run" / "sidecar.json").read()
    assert left is not None and left.phase == "failed" and left.last_exit is not None
    assert "/no/where" in left.last_exit.stderr_tail and b"/no/where" in stderr


# Hangs


def test_a_hung_server_is_killed_and_comes_back(start: Start) -> None:
    # The interval is the probe's timeout, too: a sound server must answer within it, on a busy machine as well.
    running = start(**INSTANT, SIDECAR_PROBE_INTERVAL="0.5", SIDECAR_PROBE_MISSES="3")
    ready = running.until_phase()
    until(lambda: ask(ready, "GET", "/health")[0] == 200)
    assert ask(ready, "POST", "/hang")[0] == 202
    back = running.until_server_after(server_pid(ready))
    assert back.last_exit is not None and back.last_exit.signal == "SIGKILL"
    assert "no answer to 3 probes" in back.last_exit.stderr_tail
    assert ask(back, "GET", "/health")[0] == 200


def test_a_server_that_never_answers_gets_its_grace_and_no_more(start: Start) -> None:
    running = start(
        "--events", standin="mute", SIDECAR_PROBE_INTERVAL="0.1", SIDECAR_STARTUP_GRACE="2", SIDECAR_RESTART_LIMIT="1"
    )
    assert running.wait() == 1
    running.stderr()
    # Its life is counted from its start, which is a little before it is told.
    lived_s = running.events[-1]["last_exit"]["at"] - running.events[0]["updated_at"]
    assert 1.0 <= lived_s < 10


# Stopping


def test_shutdown_by_http(start: Start) -> None:
    running = start("--events")
    assert ask(running.until_phase(), "POST", "/shutdown")[0] == 202
    assert running.wait() == 0
    assert running.phases()[-1] == "stopping"
    assert not running.file.path.exists()


@pytest.mark.parametrize("standin", ["ignore_stop", "ignore_stop ignore_term"])
def test_a_stubborn_server_is_ended_by_the_next_rung(start: Start, standin: str) -> None:
    running = start(standin=f"{standin} grandchild", SIDECAR_DRAIN="0", SIDECAR_TERM="0.3")
    ready = running.until_phase()
    grandchild = ask(ready, "GET", "/pids")[1]["grandchild"]
    running.process.terminate()
    assert running.wait() == 0
    ended = "SIGKILL" if "ignore_term" in standin else "SIGTERM"
    assert f"ended: {ended}" in running.log()
    assert not is_running(server_pid(ready))
    until(lambda: not is_running(grandchild))


def test_a_second_signal_skips_the_drain(start: Start) -> None:
    running = start(standin="ignore_stop", SIDECAR_DRAIN="60")
    running.until_phase()
    running.process.send_signal(signal.SIGINT)
    running.until_phase("stopping")
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 0


def test_a_stop_between_two_servers_is_immediate(start: Start) -> None:
    running = start(SIDECAR_RESTART_DELAYS="60")
    os.kill(server_pid(running.until_phase()), signal.SIGKILL)
    running.until_phase("restarting", server=None)
    running.process.terminate()
    assert running.wait() == 0
    assert not running.file.path.exists()


# Output


def test_nobody_reading_events_changes_nothing(tmp_path: Path) -> None:
    environment = environment_of(tmp_path, **INSTANT)
    process = subprocess.Popen(
        [*SUPERVISE, "--events"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    file = HandshakeFile(tmp_path / "run" / "sidecar.json")
    ready = until_ready(tmp_path)
    assert ask(ready, "GET", "/health")[0] == 200
    os.kill(server_pid(ready), signal.SIGKILL)
    until(lambda: (now := file.read()) and now.phase == "ready" and now.server != ready.server)
    process.terminate()
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 0
    assert b"Traceback" not in stderr and b"BrokenPipe" not in stderr


def test_log_rotates_and_what_a_chatty_server_says_is_kept(start: Start) -> None:
    running = start(standin="flood=30000", SIDECAR_LOG_MAX_BYTES="20000", SIDECAR_LOG_FILES="2")
    ready = running.until_phase()
    ask(ready, "POST", "/flood/60000")
    logs = running.home / "logs"
    line_bytes = len(b"a log line of a server that has much to tell, number 0000000\n")
    until(lambda: f"number {60_000 // line_bytes - 1:07d}" in running.log())
    names = {path.name for path in logs.iterdir()}
    assert names == {"sidecar.log", "sidecar.log.1", "sidecar.log.2"}
    assert all(path.stat().st_size <= 20_000 for path in logs.iterdir())
    assert ask(ready, "GET", "/health")[0] == 200


def test_closed_standard_descriptors_do_not_become_the_socket(tmp_path: Path) -> None:
    command = f"exec {' '.join(SUPERVISE)} 0<&- 1>&- 2>&-"
    process = subprocess.Popen(["sh", "-c", command], env=environment_of(tmp_path))
    assert ask(until_ready(tmp_path), "GET", "/health")[0] == 200
    process.terminate()
    assert process.wait(15) == 0
