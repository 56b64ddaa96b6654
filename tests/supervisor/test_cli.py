"""The roles of the command line, and the second start."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from jsonschema import Draft202012Validator

from sidecar.supervisor.cli import main_logs, main_status, main_stop
from sidecar.supervisor.follow import follow, last_lines
from sidecar.supervisor.handshake import HandshakeFile, LastExit, Process
from sidecar.supervisor.lock import InstanceLock
from sidecar.supervisor.logs import RotatingLog
from tests.supervisor.conftest import Start
from tests.supervisor.harness import SUPERVISE, ask, environment_of, until
from tests.supervisor.test_handshake import FULL, SCHEMA, make

# A second start


def test_a_second_start_attaches(start: Start) -> None:
    first = start().until_phase()
    second = start()
    assert second.wait() == 0
    second.stderr()
    assert len(second.events) == 1
    assert second.events[0]["instance_id"] == first.instance_id
    assert second.events[0]["token"] == first.token
    assert ask(first, "GET", "/health")[0] == 200, "the first one was not disturbed"


def test_two_starts_at_once_make_one(start: Start) -> None:
    both = [start(), start()]
    ready = until(lambda: (now := both[0].file.read()) and now.phase == "ready" and now)
    assert ready
    first = next(one for one in both if one.pid == ready.supervisor.pid)
    second = next(one for one in both if one is not first)
    assert second.wait() == 0
    second.stderr()
    assert [event["instance_id"] for event in second.events] == [ready.instance_id]


def test_a_second_start_with_events_mirrors_until_the_first_ends(start: Start) -> None:
    # The mirror looks four times a second: what it must see lasts until it has been seen.
    first = start(SIDECAR_RESTART_DELAYS="0,60")
    ready = first.until_phase()
    second = start("--events")
    until(lambda: second.events)
    assert ready.server is not None
    os.kill(ready.server.pid, signal.SIGKILL)
    back = first.until_server_after(ready.server.pid)
    until(lambda: second.events[-1]["phase"] == "ready" and second.events[-1]["restarts"]["count"] == 1)
    assert back.server is not None
    os.kill(back.server.pid, signal.SIGKILL)
    until(lambda: second.events[-1]["phase"] == "restarting" and second.events[-1]["restarts"]["count"] == 2)
    first.process.terminate()
    assert second.wait() == 0
    phases = second.phases()
    assert phases[0] == "ready" and phases.index("restarting") > 0
    assert {event["instance_id"] for event in second.events} == {ready.instance_id}


def test_a_mirror_ends_with_its_own_host_and_leaves_the_first_alone(start: Start) -> None:
    ready = start().until_phase()
    second = start("--events")
    until(lambda: second.events)
    assert second.process.stdin is not None
    second.process.stdin.close()
    assert second.wait() == 0
    assert ask(ready, "GET", "/health")[0] == 200


def test_a_mirror_ends_with_the_process_that_it_is_to_watch(start: Start) -> None:
    ready = start().until_phase()
    with subprocess.Popen(["sleep", "60"]) as host:
        second = start("--events", "--watch-pid", str(host.pid))
        until(lambda: second.events)
        assert second.process.poll() is None
        host.kill()
    assert second.wait() == 0
    assert ask(ready, "GET", "/health")[0] == 200


def test_a_start_during_the_first_ones_stop_takes_over(start: Start) -> None:
    first = start(standin="ignore_stop", SIDECAR_DRAIN="60")
    old = first.until_phase()
    first.process.terminate()
    first.until_phase("stopping")
    second = start()
    until(lambda: any("sidecar.lock" in each.path for each in psutil.Process(second.pid).open_files()), "it waits")
    first.process.terminate()  # a second time: the drain ends
    assert second.until_phase().instance_id != old.instance_id
    assert first.wait() == 0


def test_a_holder_without_a_handshake_is_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidecar.settings import Settings
    from sidecar.supervisor import attach

    settings = Settings.load(home=tmp_path)
    holder, other = InstanceLock(settings.lock_path), InstanceLock(settings.lock_path)
    assert holder.take()
    monkeypatch.setattr(attach, "HANDSHAKE_TIMEOUT_S", 0.1)
    with pytest.raises(attach.InstanceBusyError, match=r"sidecar\.lock"):
        attach.take_or_attach(settings, other)
    holder.release()
    assert attach.take_or_attach(settings, other) is None
    other.release()


# status and stop


def test_status_and_stop(start: Start) -> None:
    running = start()
    ready = running.until_phase()
    status = running.role("status")
    assert status.returncode == 0
    assert ready.base_url in status.stdout and "ready" in status.stdout
    assert ready.token is not None and ready.token not in status.stdout
    assert json.loads(running.role("status", "--json").stdout)["instance_id"] == ready.instance_id
    stop = running.role("stop")
    assert (stop.returncode, stop.stdout) == (0, "stopped\n")
    assert running.wait() == 0
    assert "POST /shutdown" in running.log()
    assert running.role("status").stdout == "not running\n"
    assert running.role("status", "--json").stdout == "null\n"
    assert running.role("stop").stdout == "not running\n"


def test_stop_of_a_hung_server_falls_back_to_sigterm(start: Start) -> None:
    running = start(SIDECAR_DRAIN="0", SIDECAR_TERM="0.2")
    ask(running.until_phase(), "POST", "/hang")
    assert running.role("stop").returncode == 0
    assert running.wait() == 0
    assert "stopping: SIGTERM" in running.log()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIDECAR_HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    return tmp_path


def test_status_of_a_failed_one_shows_the_evidence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = make(phase="failed", last_exit=LastExit(3, None, 1.0, "one\nno such model\n"))
    HandshakeFile(home / "run" / "sidecar.json").write(failed)
    assert main_status([]) == 3
    shown = capsys.readouterr().out
    assert "failed" in shown and "code 3" in shown and "no such model" in shown
    assert main_status(["--json"]) == 3
    assert json.loads(capsys.readouterr().out)["phase"] == "failed"


def test_a_stale_handshake_is_not_running_and_nobody_is_signalled(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HandshakeFile(home / "run" / "sidecar.json").write(make(supervisor=Process(os.getpid(), 1.0)))
    assert main_status([]) == 3
    assert main_stop([]) == 0
    assert capsys.readouterr().out == "not running\n" * 2


def test_status_shows_progress(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = Process.of(os.getpid())
    HandshakeFile(home / "run" / "sidecar.json").write(make(supervisor=me, progress=FULL.progress, device="cpu"))
    assert main_status([]) == 0
    assert "minilm: 1 bytes" in capsys.readouterr().out


# logs


def write_log(path: Path, count: int) -> RotatingLog:
    log = RotatingLog(path, max_bytes=1_000_000, files=2)
    for number in range(count):
        log.write(b"line %d\n" % number)
    return log


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (3, 3), (10_000, 5_000), (9_999_999, 5_000)])
def test_last_lines(tmp_path: Path, count: int, expected: int) -> None:
    write_log(tmp_path / "sidecar.log", 5_000).close()
    text, offset = last_lines(tmp_path / "sidecar.log", count)
    assert text.decode().splitlines() == [f"line {number}" for number in range(5_000 - expected, 5_000)]
    assert offset == (tmp_path / "sidecar.log").stat().st_size
    assert last_lines(tmp_path / "none", 3) == (b"", 0)


def test_follow_goes_on_across_rotation(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    log = RotatingLog(tmp_path / "sidecar.log", max_bytes=10_000, files=3)
    log.write(b"old\n")
    got = bytearray()
    seen = threading.Event()

    def emit(data: bytes) -> None:
        got.extend(data)
        seen.set()
        if b"last" in got:
            raise Enough

    def run() -> None:
        with pytest.raises(Enough):
            follow(tmp_path / "sidecar.log", 4, emit)

    reader = threading.Thread(target=run)
    reader.start()
    log.write(b"first\n")
    assert seen.wait(5)
    log.write(b"second\n")
    log.write(b"." * 9_990 + b"\n")  # this one rotates
    until(lambda: b"..." in got)
    log.write(b"last\n")
    reader.join(5)
    log.close()
    assert got == b"first\nsecond\n" + b"." * 9_990 + b"\nlast\n"


def test_logs_role(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main_logs([]) == 1
    assert "no log at" in capfd.readouterr().err
    write_log(home / "logs" / "sidecar.log", 5).close()
    assert main_logs(["-n", "2"]) == 0
    assert capfd.readouterr().out == "line 3\nline 4\n"


def test_logs_into_a_closed_pipe_is_quiet(home: Path) -> None:
    write_log(home / "logs" / "sidecar.log", 50_000).close()
    command = f"{sys.executable} {SUPERVISE[1]} logs -n 100000 | head -n 1"
    done = subprocess.run(["sh", "-c", command], env=environment_of(home), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("line 0\n", "")


@pytest.mark.parametrize(
    ("flags", "settings", "code"),
    [
        (["--port", "{taken}"], {}, "config_invalid"),
        ([], {"SIDECAR_PROBE_INTERVAL": "often"}, "config_invalid"),
    ],
)
def test_a_start_that_fails_says_so_to_the_host(
    flags: list[str], settings: dict[str, str], code: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        filled = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        done = subprocess.run(
            [*SUPERVISE, "--events", *filled],
            env=environment_of(tmp_path / "home", "", **settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert done.returncode == 78
    (line,) = done.stdout.splitlines()
    event = json.loads(line)
    Draft202012Validator(SCHEMA).validate(event)
    assert event["phase"] == "failed" and event["error"]["code"] == code
    assert event["error"]["message"] in done.stderr


@pytest.mark.parametrize(("role", "code"), [("status", 3), ("stop", 0)])
def test_questions_need_no_folder_to_write_to(home: Path, role: str, code: int) -> None:
    (home / "run" / "sidecar.lock").mkdir()  # root may open every file, but no folder, for writing
    done = subprocess.run([*SUPERVISE[:2], role], env=environment_of(home), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (code, "not running\n", "")


@pytest.mark.parametrize("left", [None, "{"])
def test_an_instance_that_shows_no_file_is_not_denied(start: Start, left: str | None) -> None:
    running = start()
    running.until_phase()
    file = running.home / "run" / "sidecar.json"
    file.unlink()
    if left:
        file.write_text(left)
    status, stop = running.role("status", "--json"), running.role("stop")
    assert (status.returncode, status.stdout) == (4, "null\n")
    assert stop.returncode == 1 and "not running" not in stop.stdout
    for done in (status, stop):
        assert "sidecar.lock" in done.stderr and done.stderr.count("\n") == 1


def test_stop_ends_a_supervisor_that_is_frozen(start: Start) -> None:
    running = start()
    running.until_phase()
    os.kill(running.pid, signal.SIGSTOP)
    done = running.role("stop")
    assert (done.returncode, done.stdout.strip()) == (0, "stopped")


def test_a_second_start_that_wants_something_else_is_told(start: Start) -> None:
    first = start()
    first.until_phase()
    second = start("--port", "1")
    assert second.wait() == 0
    assert "already running with port" in second.stderr()
