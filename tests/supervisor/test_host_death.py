"""However the host dies, nothing of the tree is left. `parent.py` and the stop, by real processes.

That it takes no longer than 2 s is measured over many deaths in e2e/test_crash.py: any single one may meet a machine
that is busy.
"""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.supervisor.conftest import Start
from tests.supervisor.harness import (
    SUPERVISE,
    Running,
    ask,
    environment_of,
    is_running,
    run_python,
    server_pid,
    until,
    until_ready,
)

GONE_S = 15.0  # what has not noticed lives for a minute and more
HOST = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""


def tree_of(running: Running) -> list[int]:
    ready = running.until_phase()
    return [running.pid, server_pid(ready), ask(ready, "GET", "/pids")[1]["grandchild"]]


def assert_gone(pids: list[int], since: float) -> None:
    until(lambda: not any(map(is_running, pids)), f"{pids} gone", timeout_s=since + GONE_S - time.monotonic())


@pytest.mark.parametrize("standin", ["grandchild", "grandchild ignore_term ignore_eof ignore_stop"])
def test_end_of_stdin_ends_the_whole_tree(start: Start, standin: str) -> None:
    running = start(standin=standin)
    pids = tree_of(running)
    assert running.process.stdin is not None
    running.process.stdin.close()
    since = time.monotonic()
    until(lambda: running.process.poll() is not None)  # reaped: a test is no init
    assert_gone(pids, since)
    assert not running.file.path.exists()


def test_sigkill_of_the_host(tmp_path: Path) -> None:
    environment = environment_of(tmp_path, "grandchild ignore_term ignore_eof ignore_stop")
    host = run_python(HOST, *SUPERVISE, env=environment, stdout=subprocess.PIPE)
    assert host.stdout is not None
    supervisor = int(host.stdout.readline())
    ready = until_ready(tmp_path)
    pids = [supervisor, server_pid(ready), ask(ready, "GET", "/pids")[1]["grandchild"]]
    host.kill()
    assert_gone(pids, time.monotonic())
    host.wait()
    host.stdout.close()


def test_watched_pid_ends_the_whole_tree(start: Start) -> None:
    host = run_python("import time; time.sleep(60)")
    running = start("--watch-pid", str(host.pid), standin="grandchild ignore_term", stdin=subprocess.DEVNULL)
    pids = tree_of(running)
    host.kill()
    since = time.monotonic()
    host.wait()
    until(lambda: running.process.poll() is not None)
    assert_gone(pids, since)


def test_hangup_of_the_terminal_ends_it_and_detach_does_not_care(start: Start, tmp_path: Path) -> None:
    running = start(standin="grandchild")
    pids = tree_of(running)
    running.process.send_signal(signal.SIGHUP)
    since = time.monotonic()
    assert running.wait() == 0
    assert_gone(pids, since)
    detached = start("--detach", home=tmp_path / "other")
    ready = detached.until_phase()
    assert detached.process.stdin is not None
    detached.process.stdin.close()
    detached.process.send_signal(signal.SIGHUP)
    until(lambda: ask(ready, "GET", "/health")[0] == 200)
    detached.process.terminate()
    assert detached.wait() == 0, "the hang-up had come before and changed nothing"
    assert "SIGTERM" in detached.log()


def test_without_a_pipe_there_is_no_host(start: Start) -> None:
    running = start(stdin=subprocess.DEVNULL)
    running.until_phase()
    assert "stdin" not in running.log()


def test_sigkill_of_the_supervisor_takes_the_server_along(start: Start) -> None:
    running = start()
    ready = running.until_phase()
    running.process.kill()
    since = time.monotonic()
    running.wait()
    assert_gone([server_pid(ready)], since)
    assert running.file.read_live() is None, "stale, and known to be"
    assert start().until_phase().instance_id != ready.instance_id
