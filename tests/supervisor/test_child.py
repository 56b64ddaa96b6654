"""One server process."""

import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.supervisor.child import LAST_WORDS_S, Child, describe_exit, launch_environment
from sidecar.supervisor.events import Event, ServerExited, StatusReported
from sidecar.supervisor.logs import TAIL_BYTES, RotatingLog
from tests.supervisor.harness import is_running, until

DEADLINE_S = 10.0
TOKEN = "5ec2e7" * 10 + "abcd"
Spawn = Callable[[str], Child]


@pytest.fixture
def events() -> "queue.SimpleQueue[Event]":
    return queue.SimpleQueue()


@pytest.fixture
def spawn(tmp_path: Path, events: "queue.SimpleQueue[Event]") -> Iterator[Spawn]:
    children: list[Child] = []
    log = RotatingLog(tmp_path / "sidecar.log", max_bytes=1_000_000, files=2)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def begin(source: str) -> Child:
            environment = launch_environment({}, token=TOKEN, instance_id="i", restart_count=2)
            command = [sys.executable, "-S", "-c", source]
            child = Child(command, environment, listener, launch=1, secret=TOKEN, log=log, put=events.put)
            children.append(child)
            return child

        yield begin
        for child in children:
            child.kill()
        log.close()


def until_exit(events: "queue.SimpleQueue[Event]") -> tuple[list[Event], int]:
    """Everything before the exit, and the return code."""
    before: list[Event] = []
    while not isinstance(event := events.get(timeout=DEADLINE_S), ServerExited):
        before.append(event)
    return before, event.returncode


def test_status_lines_come_before_the_exit(spawn: Spawn, events: "queue.SimpleQueue[Event]", tmp_path: Path) -> None:
    spawn("""print('{"event":"phase","phase":"ready"}\\n{"no event":1}\\nnot json\\n{"event":"last"}', end="")""")
    before, returncode = until_exit(events)
    assert returncode == 0
    assert before == [
        StatusReported(1, {"event": "phase", "phase": "ready"}),
        StatusReported(1, {"event": "last"}),
    ]
    log = (tmp_path / "sidecar.log").read_text()
    assert '[server stdout] {"no event":1}' in log and "[server stdout] not json" in log


def test_control_messages_arrive_and_late_ones_are_harmless(spawn: Spawn, events: "queue.SimpleQueue[Event]") -> None:
    child = spawn("import sys, json; sys.exit(json.loads(sys.stdin.readline())['code'])")
    child.send({"op": "stop", "code": 42})
    assert until_exit(events)[1] == 42
    child.send({"op": "stop"})
    child.terminate()
    child.kill()


def test_the_launch_is_in_the_environment_and_nowhere_else(
    spawn: Spawn, events: "queue.SimpleQueue[Event]", tmp_path: Path
) -> None:
    child = spawn(
        "import os, sys; e = os.environ; print(sys.argv, e['SIDECAR_LAUNCH_TOKEN'], file=sys.stderr);"
        "sys.exit(not (e['SIDECAR_LAUNCH_RESTART_COUNT'] == '2' and e['SIDECAR_LAUNCH_INSTANCE_ID'] == 'i'))"
    )
    assert until_exit(events)[1] == 0
    assert child.stderr_tail() == "['-c'] [token]\n"
    assert TOKEN not in (tmp_path / "sidecar.log").read_text()


def test_the_tail_is_the_end(spawn: Spawn, events: "queue.SimpleQueue[Event]") -> None:
    child = spawn("import sys; sys.stderr.write('x' * 100_000 + '\\nthe end')")
    until_exit(events)
    assert child.stderr_tail().endswith("x\nthe end\n")
    assert len(child.stderr_tail()) == TAIL_BYTES


def test_a_process_that_left_the_group_does_not_hold_up_the_exit(
    spawn: Spawn, events: "queue.SimpleQueue[Event]"
) -> None:
    child = spawn(
        "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'],"
        "start_new_session=True); print(p.pid, file=sys.stderr, flush=True); os._exit(1)"
    )
    assert until_exit(events)[1] == 1
    stray = int(until(child.stderr_tail, "its last words"))
    assert is_running(stray), "it has our pipes, and we are here all the same"
    os.kill(stray, signal.SIGKILL)
    until(lambda: not is_running(stray))


class SlowDisk(RotatingLog):
    """Takes each block as long as a disk that others have filled with work."""

    def write(self, data: bytes) -> None:
        threading.Event().wait(LAST_WORDS_S * 0.6)
        super().write(data)


def test_the_last_words_are_heard_however_slow_the_disk(tmp_path: Path, events: "queue.SimpleQueue[Event]") -> None:
    log = SlowDisk(tmp_path / "sidecar.log", max_bytes=1_000_000, files=1)
    source = "import sys; sys.stderr.write('a line of the log\\n' * 5000 + 'the end')"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-S", "-c", source]
        child = Child(command, {}, listener, launch=1, secret=None, log=log, put=events.put)
        assert until_exit(events)[1] == 0
    assert child.stderr_tail().endswith("\nthe end\n")
    log.close()


def test_terminate_and_kill(spawn: Spawn, events: "queue.SimpleQueue[Event]") -> None:
    spawn("import time; time.sleep(60)").terminate()
    assert until_exit(events)[1] == -signal.SIGTERM
    spawn("import time; time.sleep(60)").kill()
    assert until_exit(events)[1] == -signal.SIGKILL


def test_a_command_that_does_not_exist(tmp_path: Path, events: "queue.SimpleQueue[Event]") -> None:
    log = RotatingLog(tmp_path / "sidecar.log", max_bytes=10_000, files=1)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "no")], {}, listener, launch=1, secret=None, log=log, put=events.put)
    assert events.empty()


def test_what_an_outer_sidecar_left_is_taken_out() -> None:
    outer = {"SIDECAR_LAUNCH_TOKEN": "old", "SIDECAR_LAUNCH_SOCKET_FD": "3", "PATH": "/bin"}
    environment = launch_environment(outer, token=None, instance_id="i", restart_count=0)
    assert environment == {"PATH": "/bin", "SIDECAR_LAUNCH_INSTANCE_ID": "i", "SIDECAR_LAUNCH_RESTART_COUNT": "0"}


def test_describe_exit() -> None:
    assert describe_exit(3, None) == "exit code 3"
    assert describe_exit(None, "SIGKILL") == "SIGKILL"
