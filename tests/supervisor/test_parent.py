"""Noticing the host's death."""

import os
import queue
import signal
import socket
import subprocess

import pytest

from sidecar.supervisor import parent
from sidecar.supervisor.events import Event, HostGone
from sidecar.supervisor.handshake import Process
from tests.supervisor.harness import run_python

DEADLINE_S = 5.0
SLEEP = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def events() -> "queue.SimpleQueue[Event]":
    return queue.SimpleQueue()


def test_end_of_a_pipe(events: "queue.SimpleQueue[Event]") -> None:
    reader, writer = os.pipe()
    assert parent.watch_stdin(events.put, reader)
    os.write(writer, b"whatever a host may say\n")
    assert events.empty()
    os.close(writer)
    assert isinstance(events.get(timeout=DEADLINE_S), HostGone)
    os.close(reader)


def test_end_of_a_socket(events: "queue.SimpleQueue[Event]") -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert parent.watch_stdin(events.put, ours.fileno())
        theirs.close()
        assert isinstance(events.get(timeout=DEADLINE_S), HostGone)


def test_no_host_behind_a_file_a_device_a_terminal_or_nothing() -> None:
    master, terminal = os.openpty()
    with open(__file__, "rb") as file, open(os.devnull, "rb") as null:
        assert not any(map(parent.is_host_pipe, (file.fileno(), null.fileno(), terminal)))
    os.close(master)
    os.close(terminal)
    assert not parent.is_host_pipe(terminal)


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_watched_pid(events: "queue.SimpleQueue[Event]", has_pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    host = run_python(SLEEP, stdout=subprocess.PIPE)
    assert host.stdout is not None and host.stdout.readline()
    parent.watch_pid(host.pid, events.put)
    assert events.empty()
    host.send_signal(signal.SIGKILL)
    gone = events.get(timeout=DEADLINE_S)
    assert gone == HostGone(f"process {host.pid} ended")
    host.wait()
    host.stdout.close()


def test_watched_pid_that_is_gone_already(events: "queue.SimpleQueue[Event]") -> None:
    host = run_python("")
    host.wait()
    parent.watch_pid(host.pid, events.put)
    assert isinstance(events.get(timeout=DEADLINE_S), HostGone)


def test_a_pid_in_other_hands_counts_as_gone() -> None:
    parent._until_process_ends(Process(os.getpid(), 1.0))  # returns at once: this process started at another time
